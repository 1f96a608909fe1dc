"""pycocotools, as the reference of the tests."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def pycocotools_eval(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    *,
    image_ids: list[int] | None = None,
    only_ap50: bool = False,
) -> COCOeval:
    """Run pycocotools on copies; ``detections`` must not be empty.

    Args:
        only_ap50: one IoU and one range of areas, which is faster; ``stats`` are then not there.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy({"info": {}, **ground_truth})
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        if image_ids is not None:
            reference.params.imgIds = image_ids
        if only_ap50:
            reference.params.iouThrs = np.array([0.5])
            reference.params.areaRng = reference.params.areaRng[:1]
            reference.params.areaRngLbl = reference.params.areaRngLbl[:1]
        reference.evaluate()
        reference.accumulate()
        if not only_ap50:
            reference.summarize()
    return reference


def pycocotools_ap50(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> float:
    """AP50 in percent, NaN without objects."""
    if not detections:  # pycocotools needs one
        count = any(not annotation["iscrowd"] for annotation in ground_truth["annotations"])
        return 0.0 if count else float("nan")
    precision = pycocotools_eval(ground_truth, detections, only_ap50=True).eval["precision"]
    valid = precision[0, :, :, 0, -1]
    valid = valid[valid > -1]
    return float(np.mean(valid) * 100) if valid.size else float("nan")
