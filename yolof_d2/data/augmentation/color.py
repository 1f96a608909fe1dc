"""Colour distortion, of the YOLOv4 recipe."""

from __future__ import annotations

import math

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from yolof_d2.checks import require

_BAND = 64  # rows at a time: intermediate results then stay in the processor's cache


class ColorDistortionTransform(Transform):
    """Turn the hue, scale saturation and value in the HSV colour space (hexcone model).

    A. R. Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978. Computed in float32 and rounded once,
    so a transform by (0, 1, 1) changes nothing. Coordinates and label maps stay as they are.
    """

    def __init__(
        self, hue: float, saturation: float, exposure: float, *, image_format: str
    ) -> None:
        """
        Args:
            hue: added to the hue, in turns of the colour circle (-0.05 is -18 degrees).
            saturation: factor of the saturation, >= 0; the product is clipped at full saturation.
            exposure: factor of the value, >= 0; the product is clipped at 255.
            image_format: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self.hue = hue
        self.saturation = saturation
        self.exposure = exposure
        self.image_format = image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Distort an image.

        Args:
            img: uint8 (H, W, 3), in ``image_format`` order.

        Returns:
            A new array of the same shape, dtype and order.

        Raises:
            ValueError: another dtype or shape: the hue of a grey image is not defined, and the
                range of a float image not known.
        """
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(
                f"expected a colour image, uint8 (H, W, 3), got {img.dtype} {img.shape}"
            )
        distorted = np.empty_like(img)
        for start in range(0, len(img), _BAND):
            self._distort(img[start : start + _BAND], distorted[start : start + _BAND])
        return distorted

    def _distort(self, img: np.ndarray, distorted: np.ndarray) -> None:
        channels = [self.image_format.index(letter) for letter in "RGB"]
        red, green, blue = (img[:, :, channel].astype(np.float32) for channel in channels)
        value = np.maximum(np.maximum(red, green), blue)
        chroma = value - np.minimum(np.minimum(red, green), blue)

        # Hue in sixths of the circle, from red over green to blue. The denominators are whole
        # numbers: 1 stands in for 0 where the numerator is 0 too (grey, black).
        divisor = np.maximum(chroma, 1)
        sextant = np.where(
            value == red,
            (green - blue) / divisor,
            np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
        )
        sextant += np.float32(6 * self.hue)
        sextant -= 6 * np.floor(sextant / 6)  # NumPy's % is much slower
        saturation = np.minimum(chroma * np.float32(self.saturation) / np.maximum(value, 1), 1)
        value = np.minimum(value * np.float32(self.exposure), 255)
        chroma = value * saturation

        # A channel is at its high within a sixth of the circle around its own colour, at its low
        # from two sixths on, and falls evenly between.
        for channel, own in zip(channels, (0, 2, 4), strict=True):
            away = np.abs(sextant - own)
            depth = np.clip(np.minimum(away, 6 - away) - 1, 0, 1)
            distorted[:, :, channel] = np.rint(value - chroma * depth)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points (N, 2) unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map (H, W) unchanged."""
        return segmentation

    def inverse(self) -> Transform:
        """Return a no-op: fvcore's inverse concerns the geometry alone."""
        return NoOpTransform()


class ColorDistortion(T.Augmentation):
    """With a probability, draw a :class:`ColorDistortionTransform` as in Darknet."""

    def __init__(
        self,
        prob: float,
        *,
        hue: float,
        saturation: float,
        exposure: float,
        image_format: str,
    ) -> None:
        """
        Args:
            prob: probability of a distortion, in [0, 1].
            hue: largest turn to either side, in [0, 0.5] of the colour circle; drawn uniformly.
            saturation: largest factor s, >= 1. The factor is uniform in [1, s] or, with
                probability 1/2, one over such a number.
            exposure: the same for the value.
            image_format: order of the channels, "RGB" or "BGR".

        Raises:
            ConfigError: a value out of its range.
        """
        super().__init__()
        node = "INPUT.COLOR_DISTORTION"
        require(0 <= prob <= 1, f"{node}.PROB", "lie in [0, 1]", prob)
        require(0 <= hue <= 0.5, f"{node}.HUE", "lie in [0, 0.5]", hue)
        for name, factor in (("SATURATION", saturation), ("EXPOSURE", exposure)):
            require(1 <= factor < math.inf, f"{node}.{name}", "be 1 or more", factor)
        require(
            image_format in ("RGB", "BGR"),
            "INPUT.FORMAT",
            f"be 'RGB' or 'BGR' when {node}.PROB is above 0",
            image_format,
        )
        self.prob = prob
        self.hue = hue
        self.saturation = saturation
        self.exposure = exposure
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw one distortion; the returned transform holds it, so it can be repeated.

        Args:
            image: not looked at.

        Returns:
            A :class:`ColorDistortionTransform`, or a no-op.
        """
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return ColorDistortionTransform(
            float(self._rand_range(-self.hue, self.hue)),
            self._draw_factor(self.saturation),
            self._draw_factor(self.exposure),
            image_format=self.image_format,
        )

    def _draw_factor(self, largest: float) -> float:
        factor = float(self._rand_range(1, largest))
        return factor if self._rand_range() < 0.5 else 1 / factor
