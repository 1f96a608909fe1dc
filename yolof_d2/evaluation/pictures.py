"""Draw ground truth beside predictions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes

SCORE_THRESH = 0.4
_COLORS = (
    *("red", "blue", "lime", "orange", "magenta"),
    *("cyan", "yellow", "purple", "brown", "deeppink"),
)


def pick_images(records: list[dict], num_images: int) -> list[dict]:
    """Pick the most crowded images and the emptiest one, which shows false alarms."""
    ordered = sorted(records, key=lambda record: -len(record["annotations"]))
    return ordered[: num_images - 1] + ordered[num_images - 1 :][-1:]


def draw_images(
    records: Sequence[dict],
    metadata: Metadata,
    detections_file: Path,
    *,
    score_thresh: float = SCORE_THRESH,
) -> np.ndarray:
    """Draw a row per image: ground truth on the left, predictions on the right.

    ``detections_file`` is ``coco_instances_results.json``; predictions with a score below
    ``score_thresh`` are left out.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    by_image = defaultdict(list)
    for detection in json.loads(detections_file.read_text()):
        if detection["score"] >= score_thresh:
            by_image[detection["image_id"]].append(detection)
    rows = [_draw_row(record, by_image[record["image_id"]], metadata) for record in records]
    width = max(row.shape[1] for row in rows)
    gaps = [((0, 6), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(row, gap, constant_values=255) for row, gap in zip(rows, gaps, strict=True)]
    return np.concatenate(padded)


def _draw_row(record: dict, detections: list[dict], metadata: Metadata) -> np.ndarray:
    image = read_image(record["file_name"], format="RGB")
    truth = [(box["bbox"], box["category_id"], "") for box in record["annotations"]]
    to_class = metadata.thing_dataset_id_to_contiguous_id
    found = [(d["bbox"], to_class[d["category_id"]], f" {d['score']:.2f}") for d in detections]
    left, right = (_draw_boxes(image, boxes, metadata.thing_classes) for boxes in (truth, found))
    return np.concatenate([left, np.full((len(left), 6, 3), 255, np.uint8), right], axis=1)


def _draw_boxes(
    image: np.ndarray, boxes: list[tuple[list[float], int, str]], classes: list[str]
) -> np.ndarray:
    """Draw (XYWH box, class, text after its name) on RGB uint8 (H, W, 3); enlarge small images."""
    scale = max(1, round(480 / image.shape[1]))
    canvas = torch.from_numpy(image.repeat(scale, axis=0).repeat(scale, axis=1)).permute(2, 0, 1)
    if not boxes:  # torchvision warns about an empty list
        return canvas.permute(1, 2, 0).numpy()
    corners = box_convert(torch.tensor([box for box, _, _ in boxes]) * scale, "xywh", "xyxy")
    drawn = draw_bounding_boxes(
        canvas,
        corners,
        labels=[classes[class_id] + text for _, class_id, text in boxes],
        colors=[_COLORS[class_id % len(_COLORS)] for _, class_id, _ in boxes],
        width=2,
    )
    return drawn.permute(1, 2, 0).numpy()
