"""Losses of pairs of boxes: IoU, GIoU, DIoU, CIoU, and L1 of the deltas.

They replace those of torchvision, fvcore and Detectron2, which index with a mask or check values
and so make the host wait for the GPU in every iteration. Boxes are float (..., 4) XYXY pixels, and
a loss is float (...). ``eps`` is added to divisors, square pixels, and is the least width and
height that may divide or have a logarithm, pixels: values and gradients are finite for boxes
without area too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .box_ops import intersection_and_union, xyxy_to_cxcywh


def iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return 1 - IoU, in [0, 1]: constant, and so without a gradient, where boxes do not meet."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    return 1 - intersection / (union + eps)


def generalized_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return 1 - GIoU, in [0, 2] (Rezatofighi et al., CVPR 2019).

    It grows with the empty share of the hull.
    """
    intersection, union = intersection_and_union(boxes1, boxes2)
    width, height = _hull_size(boxes1, boxes2).unbind(dim=-1)
    hull = width * height
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


def distance_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return 1 - DIoU, in [0, 2] (Zheng et al., AAAI 2020, equation 7).

    It grows with the squared distance of the centres, over the squared diagonal of the hull.
    """
    offset = xyxy_to_cxcywh(boxes1)[..., :2] - xyxy_to_cxcywh(boxes2)[..., :2]
    diagonal = _hull_size(boxes1, boxes2).square().sum(dim=-1)
    return iou_loss(boxes1, boxes2, eps) + offset.square().sum(dim=-1) / (diagonal + eps)


def complete_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return 1 - CIoU, in [0, 2.5] (Zheng et al., AAAI 2020, equations 8 to 11).

    It is the DIoU loss and a term for the difference of the aspect ratios.
    """
    width1, height1 = _sizes(boxes1, eps).unbind(dim=-1)
    width2, height2 = _sizes(boxes2, eps).unbind(dim=-1)
    angle = torch.atan2(width1, height1) - torch.atan2(width2, height2)
    aspect = 4 / math.pi**2 * angle.square()
    # A trade-off between the terms, not itself something to learn.
    alpha = (aspect / (iou_loss(boxes1, boxes2, eps) + aspect + eps)).detach()
    return distance_iou_loss(boxes1, boxes2, eps) + alpha * aspect


def delta_l1_loss(anchors: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the L1 distance of the deltas (dx, dy, dw, dh) of two boxes from the same anchor.

    The deltas are those of Faster R-CNN (Ren et al. 2015, equation 2) without weights. What both
    have from the anchor cancels: what remains is the distance of the centres in widths and heights
    of the anchor, and the difference of the logarithms of the sizes.
    """
    center1, center2 = xyxy_to_cxcywh(boxes1)[..., :2], xyxy_to_cxcywh(boxes2)[..., :2]
    shift = (center1 - center2).abs() / _sizes(anchors, eps)
    scale = (_sizes(boxes1, eps).log() - _sizes(boxes2, eps).log()).abs()
    return (shift + scale).sum(dim=-1)


def _sizes(boxes: Tensor, eps: float) -> Tensor:
    """Return widths and heights (..., 2), at least ``eps``; no gradient passes where that holds."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=eps)


def _hull_size(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return width and height (..., 2) of the smallest box around each pair."""
    bottom_right = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    return bottom_right - torch.minimum(boxes1[..., :2], boxes2[..., :2])
