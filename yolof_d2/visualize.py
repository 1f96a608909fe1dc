"""Draw ground truth beside the predictions of a run: python -m yolof_d2.visualize RUN_FOLDER."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from yolof_d2.config import build_cfg
from yolof_d2.data import register_datasets
from yolof_d2.evaluation.pictures import SCORE_THRESH, draw_images, pick_images

from .command import run_command
from .files import find_run_file

logger = logging.getLogger("yolof_d2.visualize")


def draw_run(
    run_folder: Path, output: Path, *, num_images: int = 8, score_thresh: float = SCORE_THRESH
) -> None:
    """Save one picture with a row per image: ground truth on the left, predictions on the right.

    Reads ``config.yaml`` and the detections of the last evaluation in ``run_folder``, the run's
    ``OUTPUT_DIR``; no model is built. Images with the most objects come first. Predictions with a
    score below ``score_thresh`` are left out.

    Raises:
        DataError: the folder holds no evaluated run.
        ConfigError: its config cannot be read.
    """
    config_file = find_run_file(run_folder, "config.yaml")
    detections_file = find_run_file(run_folder, "inference/coco_instances_results.json")
    cfg = build_cfg(str(config_file))
    register_datasets(cfg, eval_only=True)
    name = cfg.DATASETS.TEST[0]
    picked = pick_images(DatasetCatalog.get(name), num_images)
    picture = draw_images(
        picked, MetadataCatalog.get(name), detections_file, score_thresh=score_thresh
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(output)
    sides = f"left: ground truth, right: predictions with score >= {score_thresh}"
    logger.info("%d images (%s): %s", len(picked), sides, output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path, help="OUTPUT_DIR of an evaluated run")
    parser.add_argument(
        "--output", type=Path, help="picture to write (default: RUN_FOLDER/predictions.png)"
    )
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--score-thresh", type=float, default=SCORE_THRESH)
    args = parser.parse_args(arguments)
    args.output = args.output or args.run_folder / "predictions.png"
    return run_command(logger.name, lambda: draw_run(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
