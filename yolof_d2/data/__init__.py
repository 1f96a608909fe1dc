"""Data sets from the config, augmentation and the mapper.

``validation`` and ``synthetic`` are commands too (``python -m yolof_d2.data.validation``) and are
therefore not imported here: Python warns about a command that its package already holds.
"""

from .augmentation import RandomShift, ShiftTransform, build_augmentation
from .datasets import register_datasets, resolve_datasets
from .mapper import YOLOFDatasetMapper, build_mapper

__all__ = [
    "RandomShift",
    "ShiftTransform",
    "YOLOFDatasetMapper",
    "build_augmentation",
    "build_mapper",
    "register_datasets",
    "resolve_datasets",
]
