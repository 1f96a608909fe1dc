"""Numbers that describe a match: how many positives objects get, and how anchors are shared out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..boxes import box_area
from .build import IGNORED, GroundTruth, MatchResult

# Bounds of COCO's object sizes, square pixels of the network's input here: from, and below.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


@torch.no_grad()
def match_statistics(
    match: MatchResult, ground_truth: GroundTruth, num_classes: int
) -> dict[str, Tensor]:
    """Describe the match of a batch, without waiting for the device.

    A positive is an (anchor, ground truth) pair that counts in the box loss. One that a matcher
    names twice is one positive here: what is counted is how many anchors an object has.

    Args:
        match: of the whole batch.
        ground_truth: what was matched; padding does not count.
        num_classes: K, the label of background.

    Returns:
        float32 scalars on the device of the match, by name:

        - ``positives_per_gt``: mean number of positives of a ground truth; NaN without any;
        - ``positives_per_gt_small``, ``_medium``, ``_large``: the same of those with an area below
          32^2, from 32^2 to below 96^2, and from 96^2 square pixels of the network's input; NaN
          without any of that size;
        - ``ignored_anchor_share``: share of anchors that are ignored, of all;
        - ``positive_anchor_share``: share of anchors with the label of a class, of all;
        - ``contested_anchor_share``: share of positive anchors that are in positives of two or more
          ground truths; 0 without positive anchors.
    """
    is_pair = _distinct_pairs(match, num_gt=ground_truth.valid.shape[1])
    num_positives = is_pair.sum(dim=2)
    area = box_area(ground_truth.boxes)
    statistics = {"positives_per_gt": _mean_where(num_positives, ground_truth.valid)}
    for name, (lower, upper) in SIZES.items():
        of_size = ground_truth.valid & (lower <= area) & (area < upper)
        statistics[f"positives_per_gt_{name}"] = _mean_where(num_positives, of_size)

    ignored = match.labels == IGNORED
    positive = ~ignored & (match.labels != num_classes)
    contested = positive & (is_pair.sum(dim=1) >= 2)
    statistics["ignored_anchor_share"] = ignored.float().mean()
    statistics["positive_anchor_share"] = positive.float().mean()
    statistics["contested_anchor_share"] = contested.sum() / positive.sum().clamp(min=1)
    return statistics


def _distinct_pairs(match: MatchResult, num_gt: int) -> Tensor:
    """bool (N, M, R): whether the match has a pair of that ground truth and anchor that counts."""
    num_images, num_anchors = match.labels.shape
    # One slot more than there are pairs takes what does not count: every write is True, and their
    # order does not matter.
    slot = match.pair_gt_idx * num_anchors + match.pair_anchor_idx
    slot = slot.masked_fill(~match.pair_mask, num_gt * num_anchors)
    found = slot.new_zeros(num_images, num_gt * num_anchors + 1, dtype=torch.bool).scatter_(
        1, slot, True
    )
    return found[:, :-1].unflatten(1, (num_gt, num_anchors))


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the ``values`` that ``mask`` selects; NaN when it selects none."""
    return values.masked_fill(~mask, 0).sum() / mask.sum()
