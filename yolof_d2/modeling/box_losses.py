"""Losses of pairs of boxes: IoU, GIoU, DIoU, CIoU, and L1 of the deltas.

They replace those of torchvision, fvcore and Detectron2, which index with a mask or check values:
either makes the host wait for the GPU in every iteration. Values and gradients are finite for boxes
without area too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .box_ops import intersection_and_union, xyxy_to_cxcywh


def iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU: flat, and so without a gradient, where boxes do not meet.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to the area that divides, square pixels.

    Returns:
        float (...) in [0, 1].
    """
    intersection, union = intersection_and_union(boxes1, boxes2)
    return 1 - intersection / (union + eps)


def generalized_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019): grows with the empty share of the hull.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to areas that divide, square pixels.

    Returns:
        float (...) in [0, 2].
    """
    intersection, union = intersection_and_union(boxes1, boxes2)
    width, height = _hull_size(boxes1, boxes2)
    hull = width * height
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


def distance_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - DIoU (Zheng et al., AAAI 2020, equation 7): grows with the distance of the centres.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to what divides, square pixels.

    Returns:
        float (...) in [0, 2].
    """
    return iou_loss(boxes1, boxes2, eps) + _center_distance(boxes1, boxes2, eps)


def complete_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - CIoU (Zheng et al., AAAI 2020, equations 8 to 11): DIoU and the aspect ratios.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to what divides, square pixels; also the least width and height, pixels.

    Returns:
        float (...) in [0, 2.5].
    """
    width1, height1 = _sizes(boxes1, eps).unbind(dim=-1)
    width2, height2 = _sizes(boxes2, eps).unbind(dim=-1)
    angle = torch.atan2(width1, height1) - torch.atan2(width2, height2)
    aspect = 4 / math.pi**2 * angle.square()
    overlap = iou_loss(boxes1, boxes2, eps)
    # A trade-off between the terms, not itself something to learn.
    alpha = (aspect / (overlap + aspect + eps)).detach()
    return overlap + _center_distance(boxes1, boxes2, eps) + alpha * aspect


def _center_distance(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, in [0, 1]."""
    width, height = _hull_size(boxes1, boxes2)
    offset = xyxy_to_cxcywh(boxes1)[..., :2] - xyxy_to_cxcywh(boxes2)[..., :2]
    return offset.square().sum(dim=-1) / (width.square() + height.square() + eps)


def delta_l1_loss(anchors: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """L1 distance of the deltas (dx, dy, dw, dh) of two boxes, as seen from the same anchor.

    The deltas are those of Faster R-CNN (Ren et al. 2015, equation 2) without weights. What both
    have from the anchor cancels: what remains is the distance of the centres in widths and heights
    of the anchor, and the difference of the logarithms of the sizes.

    Args:
        anchors, boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: the least width and height, pixels.

    Returns:
        float (...), at least 0.
    """
    center1, center2 = xyxy_to_cxcywh(boxes1)[..., :2], xyxy_to_cxcywh(boxes2)[..., :2]
    shift = (center1 - center2).abs() / _sizes(anchors, eps)
    scale = (_sizes(boxes1, eps).log() - _sizes(boxes2, eps).log()).abs()
    return (shift + scale).sum(dim=-1)


def _sizes(boxes: Tensor, eps: float) -> Tensor:
    """Widths and heights (..., 2), at least ``eps``, so that they can divide or have a logarithm.

    Where ``eps`` holds, no gradient passes.
    """
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=eps)


def _hull_size(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around each pair."""
    return (
        torch.maximum(boxes1[..., 2], boxes2[..., 2])
        - torch.minimum(boxes1[..., 0], boxes2[..., 0]),
        torch.maximum(boxes1[..., 3], boxes2[..., 3])
        - torch.minimum(boxes1[..., 1], boxes2[..., 1]),
    )
