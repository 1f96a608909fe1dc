"""Records as ``load_coco_json`` makes them, and what a mapper made of one, to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

Record = dict[str, Any]


def make_record(
    path: Path, boxes: list[list[float]], size: tuple[int, int], *, image_id: int = 17, label=1
) -> Record:
    """Return the record of an image of ``size`` (height, width) with XYWH boxes of one class."""
    annotation = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": 0}
    return {
        "file_name": str(path),
        "image_id": image_id,
        "height": size[0],
        "width": size[1],
        "annotations": [{"bbox": box, **annotation} for box in boxes],
    }


def as_comparable(mapped: Record) -> Record:
    instances = mapped["instances"]
    return {
        **{k: v for k, v in mapped.items() if k not in ("instances", "image")},
        "image": mapped["image"].tolist(),
        "boxes": instances.gt_boxes.tensor.tolist(),
        "classes": instances.gt_classes.tolist(),
        "size": instances.image_size,
    }
