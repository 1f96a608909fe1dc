"""Draw ground truth beside the predictions of a run: python -m yolof_d2.visualize RUN_FOLDER."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes

from .config.load import build_cfg
from .data import register_datasets
from .errors import DataError, UserError

logger = logging.getLogger("yolof_d2.visualize")

SCORE_THRESH = 0.4
_COLORS = (
    "red",
    "blue",
    "lime",
    "orange",
    "magenta",
    "cyan",
    "yellow",
    "purple",
    "brown",
    "deeppink",
)


def draw_run(
    run_folder: Path, output: Path, *, num_images: int = 8, score_thresh: float = SCORE_THRESH
) -> None:
    """Save one picture with a row per image: ground truth on the left, predictions on the right.

    Reads what the run left behind, its ``config.yaml`` and the detections of its last evaluation;
    no model is built.

    Args:
        run_folder: the run's ``OUTPUT_DIR``.
        output: the picture to write.
        num_images: images with the most objects come first, then those without any.
        score_thresh: predictions below it are not drawn.

    Raises:
        DataError: the folder holds no evaluated run.
        ConfigError: its config cannot be read.
    """
    detections_file = run_folder / "inference" / "coco_instances_results.json"
    for path in (run_folder / "config.yaml", detections_file):
        if not path.is_file():
            raise DataError(
                f"{path} is missing: {run_folder} must be the OUTPUT_DIR of an evaluated run"
            )
    cfg = build_cfg(str(run_folder / "config.yaml"))
    register_datasets(cfg, eval_only=True)
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)

    picked = pick_images(records, num_images)
    picture = draw_images(picked, metadata, detections_file, score_thresh=score_thresh)
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(output)
    logger.info(
        "%d images (left: ground truth, right: predictions with score >= %s): %s",
        len(picked),
        score_thresh,
        output,
    )


def pick_images(records: list[dict], num_images: int) -> list[dict]:
    """Some of each, the same every time: the most crowded images show the hard cases, the emptiest
    one shows false alarms.
    """
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

    Args:
        records: images of a data set, with their annotations.
        metadata: of the data set.
        detections_file: ``coco_instances_results.json``.
        score_thresh: predictions below it are not drawn.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    by_image = defaultdict(list)
    for detection in json.loads(detections_file.read_text()):
        if detection["score"] >= score_thresh:
            by_image[detection["image_id"]].append(detection)
    rows = [_draw_row(record, by_image[record["image_id"]], metadata) for record in records]
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [
            np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )


def _draw_row(record: dict, detections: list[dict], metadata: Metadata) -> np.ndarray:
    image = read_image(record["file_name"], format="RGB")
    truth = [(box["bbox"], box["category_id"], "") for box in record["annotations"]]
    to_class = metadata.thing_dataset_id_to_contiguous_id
    found = [
        (box["bbox"], to_class[box["category_id"]], f" {box['score']:.2f}") for box in detections
    ]
    halves = [_draw_boxes(image, boxes, metadata.thing_classes) for boxes in (truth, found)]
    return np.concatenate(
        [halves[0], np.full((len(halves[0]), 6, 3), 255, np.uint8), halves[1]], axis=1
    )


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path, help="OUTPUT_DIR of an evaluated run")
    parser.add_argument(
        "--output", type=Path, help="picture to write (default: RUN_FOLDER/predictions.png)"
    )
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--score-thresh", type=float, default=SCORE_THRESH)
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        draw_run(
            args.run_folder,
            args.output or args.run_folder / "predictions.png",
            num_images=args.num_images,
            score_thresh=args.score_thresh,
        )
    except UserError as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
