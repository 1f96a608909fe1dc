"""Data sets from the config, augmentation and the mappers.

``synthetic`` is a command too (``python -m yolof_d2.data.synthetic``) and therefore not imported
here: Python warns about a command that its package already holds.
"""

from .augmentation import (
    ColorDistortion,
    ColorDistortionTransform,
    FixedSizeResize,
    JitterCrop,
    RandomShift,
    ShiftTransform,
    build_augmentation,
)
from .datasets import register_datasets, resolve_datasets
from .mapper import YOLOFDatasetMapper, build_mapper
from .mosaic import MosaicMapper, build_mosaic_mapper

__all__ = [
    "ColorDistortion",
    "ColorDistortionTransform",
    "FixedSizeResize",
    "JitterCrop",
    "MosaicMapper",
    "RandomShift",
    "ShiftTransform",
    "YOLOFDatasetMapper",
    "build_augmentation",
    "build_mapper",
    "build_mosaic_mapper",
    "register_datasets",
    "resolve_datasets",
]
