"""Check one json, or all data sets of a config."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from yolof_d2.config import num_classes
from yolof_d2.modeling.families import family_of

from .report import REPORT_NAME, Problem, report_problems
from .rules import CocoCheck

logger = logging.getLogger(__name__)

HEADER_CHECK_MAX_IMAGES = 2000
"""Up to this size :func:`check_datasets` opens every image (well under a minute on a disk)."""


def check_coco_json(
    json_file: str, image_folder: str, *, training: bool, read_headers: bool = False
) -> list[Problem]:
    """Return all problems of one COCO json and its images, in the order of the file.

    Args:
        json_file: path of the annotation file.
        image_folder: folder that the ``file_name`` entries are relative to.
        training: apply the rules for training data; without it, those for test data.
        read_headers: also compare the size in each image's header with the json. The pixels are
            not decoded, so an image cut off after its header goes unnoticed.
    """
    limit = math.inf if read_headers else 0
    return CocoCheck(json_file, image_folder, training, not training, limit).run().problems


def check_datasets(cfg: CfgNode, *, skip_train: bool = False) -> list[Problem]:
    """Check all data sets of a config that are in COCO format, and return the warnings.

    Sets of other formats (LVIS, VOC, ...) are skipped. Problems are logged and written in full to
    ``OUTPUT_DIR/data_report.txt``. Call it on every rank: all come to the same result.

    Args:
        cfg: resolved config, see :func:`yolof_d2.data.datasets.resolve_datasets`.
        skip_train: leave out ``DATASETS.TRAIN``.

    Raises:
        DataError: there is at least one error; its message holds the (shortened) report.
    """
    train = () if skip_train else cfg.DATASETS.TRAIN
    test = cfg.DATASETS.TEST
    problems: list[Problem] = []
    for name in dict.fromkeys((*train, *test)):
        problems += _check_dataset(cfg, name, training=name in train, evaluation=name in test)
    report_problems(problems, Path(cfg.OUTPUT_DIR, REPORT_NAME))
    return problems


def _check_dataset(cfg: CfgNode, name: str, *, training: bool, evaluation: bool) -> list[Problem]:
    if name not in DatasetCatalog:
        message = f"data set {name!r} is not registered (DATASETS.TRAIN / DATASETS.TEST)"
        return [Problem("error", "not_registered", name, None, None, message)]
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or image_root is None or metadata.get("evaluator_type") != "coco":
        logger.info("Data set %s is not in COCO format and was not checked.", name)
        return []
    check = CocoCheck(
        os.fspath(json_file), os.fspath(image_root), training, evaluation, HEADER_CHECK_MAX_IMAGES
    ).run()
    found, wanted = len(check.categories or ()), num_classes(cfg)
    if found and wanted not in (None, found):
        key = f"MODEL.{family_of(cfg).node}.NUM_CLASSES"
        check.add("num_classes", f"{found} categories, but {key} = {wanted}")
    use = " and ".join(["train"] * training + ["test"] * evaluation)
    num_problems = len(check.problems)
    logger.info("Data set %s (%s): %s; %d problems", name, use, check.counts, num_problems)
    return check.problems
