"""Data: the user's own COCO-format sets, checks before training, augmentation and the mapper.

The names are imported on first use: the modules ``validation`` and ``synthetic`` are commands too
(``python -m yolof_d2.data.validation``), and Python warns about a command that its own package has
already imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolof_d2.data.augmentation import RandomShift, ShiftTransform, build_augmentation
    from yolof_d2.data.datasets import register_datasets, resolve_datasets
    from yolof_d2.data.mapper import YOLOFDatasetMapper, build_mapper
    from yolof_d2.data.synthetic import SyntheticDataset, write_synthetic_dataset
    from yolof_d2.data.validation import Problem, check_coco_json, check_datasets, format_report

__all__ = [
    "Problem",
    "RandomShift",
    "ShiftTransform",
    "SyntheticDataset",
    "YOLOFDatasetMapper",
    "build_augmentation",
    "build_mapper",
    "check_coco_json",
    "check_datasets",
    "format_report",
    "register_datasets",
    "resolve_datasets",
    "write_synthetic_dataset",
]

_MODULE_OF = {
    "Problem": "validation",
    "RandomShift": "augmentation",
    "ShiftTransform": "augmentation",
    "SyntheticDataset": "synthetic",
    "YOLOFDatasetMapper": "mapper",
    "build_augmentation": "augmentation",
    "build_mapper": "mapper",
    "check_coco_json": "validation",
    "check_datasets": "validation",
    "format_report": "validation",
    "register_datasets": "datasets",
    "resolve_datasets": "datasets",
    "write_synthetic_dataset": "synthetic",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
