"""Geometry and the construction of a match, shared by several matchers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolof_d2.modeling.box_ops import box_iou

from .build import IGNORED, GroundTruth, MatchResult


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Return which points lie inside a box, not on its edge.

    Args:
        boxes: float (..., 4) XYXY pixels.
        points: float (..., 2) XY pixels; the leading dimensions of both broadcast.

    Returns:
        bool (...).
    """
    x, y = points.unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    return (left < x) & (x < right) & (top < y) & (y < bottom)


def pairwise_iou(boxes: Tensor, ground_truth: GroundTruth) -> Tensor:
    """Return the IoU of every box with every ground truth of the same image.

    Args:
        boxes: float32 XYXY pixels, (N, R, 4), or (R, 4) for the same boxes in every image.
        ground_truth: M padded boxes per image.

    Returns:
        float32 (N, M, R), never across images; 0 where padded, and for boxes that are not finite.
    """
    overlap = box_iou(boxes[..., None, :, :], ground_truth.boxes[:, :, None])
    return overlap.nan_to_num_(0).masked_fill_(~ground_truth.valid[..., None], 0)


def match_each_anchor(
    gt_idx: Tensor,
    positive: Tensor,
    ground_truth: GroundTruth,
    num_classes: int,
    ignored: Tensor | None = None,
) -> MatchResult:
    """Build a match that gives each anchor at most one ground truth: P = R pairs, in order.

    Args:
        gt_idx: int64 (N, R), any valid index where an anchor is not positive.
        positive: bool (N, R).
        ground_truth: what ``gt_idx`` points into.
        num_classes: K, the label of background.
        ignored: bool (N, R), anchors to ignore if they are not positive; by default none.
    """
    labels = torch.full_like(gt_idx, num_classes)
    if ignored is not None:
        labels = labels.masked_fill_(ignored, IGNORED)
    labels = torch.where(positive, ground_truth.classes.gather(1, gt_idx), labels)
    anchor_idx = torch.arange(gt_idx.shape[1], device=gt_idx.device).expand_as(gt_idx)
    return MatchResult(labels, anchor_idx, gt_idx, positive)


def match_highest_score(scores: Tensor, ground_truth: GroundTruth, num_classes: int) -> MatchResult:
    """Give each anchor to the ground truth that scores it highest, the first of equal ones.

    Args:
        scores: float (N, M, R), -inf where a ground truth does not want the anchor. An anchor that
            none wants is background.
        ground_truth, num_classes: see :func:`match_each_anchor`.
    """
    highest, gt_idx = scores.max(dim=1)
    return match_each_anchor(gt_idx, highest > -math.inf, ground_truth, num_classes)
