"""Augmentations of the YOLOF and YOLOv4 recipes that Detectron2 lacks.

Coordinate frame: x to the right, y down, in pixels; the top-left corner of an image is (0, 0) and
the bottom-right corner of a W x H image is (W, H). Random numbers are drawn in ``get_transform``
alone, from NumPy's global generator, which Detectron2 seeds in each worker: a transform, once
drawn, can be repeated.
"""

from .build import build_augmentation
from .color import ColorDistortion, ColorDistortionTransform
from .crop import ClipBoxes, ClipBoxesTransform, JitterCrop
from .resize import FixedSizeResize
from .shift import RandomShift, ShiftTransform

__all__ = [
    "ClipBoxes",
    "ClipBoxesTransform",
    "ColorDistortion",
    "ColorDistortionTransform",
    "FixedSizeResize",
    "JitterCrop",
    "RandomShift",
    "ShiftTransform",
    "build_augmentation",
]
