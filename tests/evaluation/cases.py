"""Ground truth and detections for the tests of the evaluation; numpy alone, for other Pythons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
COCO128 = SHARED_DATA / "coco128" / "annotations" / "instances_train.json"
BCCD = SHARED_DATA / "bccd" / "annotations" / "instances_val.json"

Case = tuple[dict[str, Any], list[dict[str, Any]]]  # ground truth, detections


def random_case(
    seed: int,
    *,
    num_images: int = 8,
    num_classes: int = 4,
    max_objects: int = 8,
    max_detections: int = 40,
    crowds: bool = True,
    ties: bool = True,
) -> Case:
    """Objects in some of the images, and detections of all kinds.

    Classes have gaps in their ids, and the last one has no objects. Half of the cases put boxes on
    a grid, so that many overlaps are equal.
    """
    rng = np.random.RandomState(seed)  # its numbers are the same in all versions of numpy
    images = [
        {"id": int(i), "file_name": f"{i}.jpg", "height": 400, "width": 400}
        for i in rng.permutation(num_images) + 1
    ]
    categories = [{"id": 3 * i + 1, "name": f"class {i}"} for i in range(num_classes)]
    step = 8 if seed % 2 else 0
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in images:
        here = []
        for _ in range(rng.randint(max_objects + 1)):
            here.append((_random_box(rng, step), int(rng.randint(max(num_classes - 1, 1)))))
            (box, class_id), number = here[-1], len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": image["id"],
                    "category_id": categories[class_id]["id"],
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.choice([1.0, 0.5])),
                    "iscrowd": int(crowds and rng.rand() < 0.15),
                }
            )
        for _ in range(rng.randint(max_detections + 1)):
            box, class_id = _random_box(rng, step), int(rng.randint(num_classes))
            if here and rng.rand() < 0.8:
                near, near_class = here[rng.randint(len(here))]
                box = near + (rng.choice([0, 0, 4, 8, -4, 16], 4) if step else 12 * rng.randn(4))
                box[2:] = np.maximum(box[2:], 1)
                class_id = near_class if rng.rand() < 0.7 else class_id
            score = rng.rand()
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": categories[class_id]["id"],
                    "bbox": box.tolist(),
                    "score": float(round(score, 1) if ties and rng.rand() < 0.5 else score),
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def _random_box(rng: np.random.RandomState, step: int) -> np.ndarray:
    box = np.concatenate([200 * rng.rand(2), 4 + 180 * rng.rand(2)])  # XYWH
    return np.maximum(np.round(box / step) * step, [0, 0, step, step]) if step else box


def perturbed_case(json_file: Path, seed: int) -> Case:
    """A real ground truth; its objects moved, renamed, repeated or forgotten, as detections."""
    ground_truth = json.loads(json_file.read_text())
    rng = np.random.RandomState(seed)
    classes = sorted({annotation["category_id"] for annotation in ground_truth["annotations"]})
    detections = []
    for annotation in ground_truth["annotations"]:
        for _ in range(rng.randint(4)):
            x, y, w, h = annotation["bbox"]
            shift = rng.choice([0.02, 0.2, 0.6]) * rng.randn(4)
            right = rng.rand() < 0.75
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if right else int(rng.choice(classes)),
                    "bbox": [
                        float(x + shift[0] * w),
                        float(y + shift[1] * h),
                        float(w * np.exp(shift[2])),
                        float(h * np.exp(shift[3])),
                    ],
                    "score": float(rng.rand()),
                }
            )
    return ground_truth, detections
