"""Random shift, of the YOLOF recipe."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from yolof_d2.errors import ConfigError


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Return slices (target, source) along an axis of ``length`` pixels; empty if none is left."""
    kept = max(length - abs(shift), 0)
    start = max(shift, 0)
    return slice(start, start + kept), slice(start - shift, start - shift + kept)


class ShiftTransform(Transform):
    """Move the image content by whole pixels; the image keeps its size.

    What leaves the frame is lost, the vacated area is filled with 0. Coordinates are moved alike
    and NOT clipped (Detectron2's mapper clips the boxes and drops those left without size).
    """

    def __init__(self, dx: int, dy: int) -> None:
        """Args:
        dx: pixels to the right; negative moves to the left. May exceed the image width.
        dy: pixels down; negative moves up. May exceed the image height.
        """
        super().__init__()
        self.dx = int(dx)
        self.dy = int(dy)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Shift an image.

        Args:
            img: (H, W) or (H, W, C), any dtype.

        Returns:
            A new array of the same shape and dtype; pixel (y, x) is ``img[y - dy, x - dx]``, or 0
            where that lies outside.

        Raises:
            ValueError: the array has another number of dimensions.
        """
        if img.ndim not in (2, 3):
            raise ValueError(f"expected an image (H, W) or (H, W, C), got shape {img.shape}")
        target_y, source_y = _overlap(self.dy, img.shape[0])
        target_x, source_x = _overlap(self.dx, img.shape[1])
        shifted = np.zeros_like(img, order="C")
        shifted[target_y, target_x] = img[source_y, source_x]
        return shifted

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift points.

        Args:
            coords: (N, 2) floating point, (x, y) in pixels.

        Returns:
            (N, 2) array, a new one; float dtypes are kept, integers become float64.
        """
        coords = np.asarray(coords)
        dtype = coords.dtype if np.issubdtype(coords.dtype, np.floating) else np.float64
        return coords.astype(dtype, copy=False) + np.array([self.dx, self.dy], dtype=dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Shift a mask or label map.

        Args:
            segmentation: (H, W), integer or bool.

        Returns:
            Same shape and dtype; the vacated area is 0 (False), as in the image.
        """
        return self.apply_image(segmentation)

    def inverse(self) -> ShiftTransform:
        """Return the shift back; pixels that left the frame stay lost."""
        return ShiftTransform(-self.dx, -self.dy)


class RandomShift(T.Augmentation):
    """With a probability, shift the image content by a random number of whole pixels.

    Both directions are drawn uniformly and independently from
    {-max_pixels, ..., max_pixels - 1}, as in the published YOLOF recipe (its upper end is
    exclusive, by 32 pixels with probability 0.5).
    """

    def __init__(self, prob: float = 0.5, max_pixels: int = 32) -> None:
        """Args:
        prob: probability of a shift, in [0, 1]; 0 switches it off.
        max_pixels: largest shift, in pixels of the image at this place of the pipeline (after
            the resize), >= 0; 0 switches it off.

        Raises:
            ConfigError: a value out of its range.
        """
        super().__init__()
        if not 0.0 <= prob <= 1.0:
            raise ConfigError(f"INPUT.RANDOM_SHIFT.PROB must be in [0, 1], got {prob}")
        if max_pixels < 0 or int(max_pixels) != max_pixels:
            raise ConfigError(
                f"INPUT.RANDOM_SHIFT.MAX_PIXELS must be a whole number >= 0, got {max_pixels}"
            )
        self.prob = prob
        self.max_pixels = int(max_pixels)

    @property
    def enabled(self) -> bool:
        """Whether any shift is possible."""
        return self.prob > 0 and self.max_pixels > 0

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw one shift; the returned transform holds it, so it can be repeated.

        Args:
            image: not looked at: the range does not depend on the image size.

        Returns:
            A :class:`ShiftTransform`, or a no-op.
        """
        # Off draws nothing, so that runs with it off see the same random numbers as runs that
        # never had it.
        if not self.enabled or self._rand_range() >= self.prob:
            return NoOpTransform()
        # NumPy's global generator is the one that Detectron2 seeds in each worker.
        dx = np.random.randint(-self.max_pixels, self.max_pixels)
        dy = np.random.randint(-self.max_pixels, self.max_pixels)
        return ShiftTransform(dx, dy)
