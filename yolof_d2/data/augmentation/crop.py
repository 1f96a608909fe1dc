"""Jitter crop of the YOLOv4 recipe, and the clipping of boxes when padding follows a crop."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from yolof_d2.checks import require


class ClipBoxesTransform(Transform):
    """Clip boxes to the image at this point of the pipeline; pixels and points stay unchanged.

    Detectron2 clips after the last transform. When padding or a shift follows a crop, that is too
    late: the part of a box that was cut off, or a whole box, would lie on the padding.
    """

    def __init__(self, height: int, width: int) -> None:
        """
        Args:
            height, width: of the image, in pixels.
        """
        super().__init__()
        self.height = height
        self.width = width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image unchanged."""
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points (N, 2) unchanged."""
        return coords

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Clip XYXY boxes (N, 4); one that lies outside is left without width or height."""
        box = np.asarray(box).reshape(-1, 4)
        return np.clip(box, 0, np.array([self.width, self.height] * 2, dtype=box.dtype))

    def inverse(self) -> Transform:
        """Return a no-op: clipping cannot be undone."""
        return NoOpTransform()


class ClipBoxes(T.Augmentation):
    """Apply :class:`ClipBoxesTransform`; draws no random numbers."""

    def get_transform(self, image: np.ndarray) -> ClipBoxesTransform:
        """Return the clipping to ``image``, (H, W) or (H, W, C)."""
        return ClipBoxesTransform(*image.shape[:2])


class JitterCrop(T.Augmentation):
    """Move each side of the image in (a crop) or out (padding) by a random share of its length.

    The four are drawn uniformly and independently, in whole pixels. Padding is 0, as after a shift.
    """

    def __init__(self, ratio: float) -> None:
        """
        Args:
            ratio: in [0, 1): the left and right side move by up to ``floor(ratio * width)`` pixels
                each, top and bottom likewise. At least one pixel of the image always stays.

        Raises:
            ConfigError: ``ratio`` out of its range.
        """
        super().__init__()
        require(0 <= ratio < 1, "INPUT.JITTER_CROP.RATIO", "lie in [0, 1)", ratio)
        self.ratio = ratio

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Draw the four sides.

        Args:
            image: (H, W) or (H, W, C); only its size is looked at.

        Returns:
            A crop and a padding, and between them boxes are clipped to the crop; points are not.
        """
        height, width = image.shape[:2]
        reach = np.floor(self.ratio * np.array([width, height, width, height])).astype(int)
        left, top, right, bottom = np.random.randint(-reach, reach + 1).tolist()
        # From a ratio of 0.5 on the two sides can meet.
        right = min(right, width - left - 1)
        bottom = min(bottom, height - top - 1)

        x0, y0, x1, y1 = (max(side, 0) for side in (left, top, right, bottom))
        crop_width, crop_height = width - x0 - x1, height - y0 - y1
        crop = T.CropTransform(x0, y0, crop_width, crop_height, orig_w=width, orig_h=height)
        padding = (max(-side, 0) for side in (left, top, right, bottom))
        pad = T.PadTransform(*padding, orig_w=crop_width, orig_h=crop_height)
        return TransformList([crop, ClipBoxesTransform(crop_height, crop_width), pad])
