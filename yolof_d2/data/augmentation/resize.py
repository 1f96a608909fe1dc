"""Resize to a fixed size, of the YOLOv4 recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from yolof_d2.checks import check_range, check_size


class FixedSizeResize(T.Augmentation):
    """Resize to a fixed size, whatever the aspect ratio, times one random factor for both sides."""

    def __init__(
        self,
        size: Sequence[int],
        scale_jitter: Sequence[float] = (1.0, 1.0),
        *,
        key: str = "INPUT.FIXED_SIZE.TRAIN",
    ) -> None:
        """
        Args:
            size: (height, width) in pixels.
            scale_jitter: smallest and largest factor, > 0; one factor is drawn uniformly per image,
                nothing is drawn when the two are equal.
            key: where ``size`` comes from, for the error message.

        Raises:
            ConfigError: an impossible size or range.
        """
        super().__init__()
        self.size = check_size(key, size)
        self.scale_jitter = check_range(
            "INPUT.FIXED_SIZE.SCALE_JITTER", scale_jitter, below=math.inf
        )
        self.key = key

    def get_transform(self, image: np.ndarray) -> T.ResizeTransform:
        """Draw the factor.

        Args:
            image: (H, W) or (H, W, C); only its size is looked at.

        Returns:
            Detectron2's bilinear resize to the size times the factor, rounded, at least 1 x 1.
        """
        low, high = self.scale_jitter
        scale = low if low == high else float(self._rand_range(low, high))
        height, width = (max(1, round(side * scale)) for side in self.size)
        return T.ResizeTransform(*image.shape[:2], height, width)
