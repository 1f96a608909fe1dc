"""Data sets from the config, and the mappers.

``synthetic`` is a command too (``python -m yolof_d2.data.synthetic``) and therefore not imported
here: Python warns about a command that its package has already imported.
"""

from .datasets import register_datasets, resolve_datasets
from .mapper import build_mapper
from .mosaic import build_mosaic_mapper
from .stream import build_train_loader

__all__ = [
    "build_mapper",
    "build_mosaic_mapper",
    "build_train_loader",
    "register_datasets",
    "resolve_datasets",
]
