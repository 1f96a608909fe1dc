"""Select the detections of one image from its predictions."""

from __future__ import annotations

from detectron2.layers import batched_nms, nonzero_tuple
from detectron2.structures import Boxes, Instances
from torch import Tensor


def select_detections(
    logits: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
) -> Instances:
    """Threshold scores, keep the best ``topk``, suppress per class, keep ``max_detections``.

    Args:
        logits: float (R, K); ``sigmoid`` gives the scores. An anchor may pass with several classes.
        boxes: float (R, 4) XYXY pixels.
        image_size: (height, width) in pixels, before padding.
        score_thresh: scores must be above it; NaN never is.
        topk: candidates that enter the suppression.
        nms_thresh: IoU above which the lower score of one class is dropped.
        max_detections: detections per image.

    Returns:
        Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, best score first.
    """
    scores = logits.sigmoid()
    anchor_idx, classes = nonzero_tuple(scores > score_thresh)
    scores, order = scores[anchor_idx, classes].sort(descending=True)
    order = order[:topk]
    scores, classes, boxes = scores[:topk], classes[order], boxes[anchor_idx[order]]
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]

    result = Instances(image_size)
    result.pred_boxes = Boxes(boxes[keep])
    result.scores = scores[keep]
    result.pred_classes = classes[keep]
    return result
