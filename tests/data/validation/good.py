"""A data set without a problem, and edits of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolof_d2.data.validation import Problem, check_coco_json

GOOD: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "sub/b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "empty.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": i, "image_id": im, "category_id": c, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0}
        for i, im, c in ((11, 1, 1), (12, 1, 2), (13, 2, 1))
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


def check(
    folder: Path, document: object, *, training: bool = True, read_headers: bool = False
) -> list[Problem]:
    path = folder / "data.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return check_coco_json(
        str(path), str(folder / "images"), training=training, read_headers=read_headers
    )


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    edit(document)
    return document


def image(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["images"][1].update({key: value})


def annotation(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["annotations"][1].update(values)


def without(section: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section][1].pop(key)


def all_annotations(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: [entry.update(values) for entry in d["annotations"]]


def top(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d.update(values)


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda d: d.pop(key)


def add(section: str, entry: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section].append(entry)


def add_copy(section: str, **changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section].append({**d[section][0], **changes})


def many_faults() -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    for index in range(47):
        document["annotations"].append(
            {**GOOD["annotations"][0], "id": 100 + index, "category_id": 9}
        )
    document["annotations"][1]["bbox"] = [1, 2, 0, 0]
    document["images"][1]["file_name"] = "gone.png"
    document["categories"].append({"id": 3, "name": "cow"})
    return document
