"""Box arithmetic on tensors of any batch shape; Detectron2's ``Boxes`` is for one image."""

from __future__ import annotations

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Turn corners into centre and size: float (..., 4) to float (..., 4), pixels."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of XYXY boxes, float (..., 4) to (...), square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the intersection over union of boxes paired by broadcasting.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels; the leading dimensions broadcast.

    Returns:
        float (...) in [0, 1]. Two boxes without area have IoU 0.
    """
    intersection, union = intersection_and_union(boxes1, boxes2)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the areas of intersection and union, square pixels; shapes as in :func:`box_iou`."""
    # Coordinate by coordinate: takes half the temporary memory of working on (..., 2) corners.
    width = torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(
        boxes1[..., 0], boxes2[..., 0]
    )
    height = torch.minimum(boxes1[..., 3], boxes2[..., 3]) - torch.maximum(
        boxes1[..., 1], boxes2[..., 1]
    )
    intersection = width.clamp_(min=0) * height.clamp_(min=0)
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection
