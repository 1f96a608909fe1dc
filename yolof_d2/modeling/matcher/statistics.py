"""Statistics of a match: positives per object, and shares of anchors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolof_d2.modeling.box_ops import box_area

from .build import IGNORED, GroundTruth, MatchResult

# Bounds of COCO's object sizes, square pixels of the network's input here: from, and below.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


_SCOPES = ("", *(f"_{size}" for size in SIZES))
COUNTS = (
    *(f"gt{scope}" for scope in _SCOPES),
    *(f"positives{scope}" for scope in _SCOPES),
    "anchors",
    "ignored_anchors",
    "positive_anchors",
    "contested_anchors",
)
"""Names of the elements of a vector of counts; vectors of several batches may be added up."""


def match_statistics(
    match: MatchResult, ground_truth: GroundTruth, num_classes: int
) -> dict[str, Tensor]:
    """Return statistics of the match of a batch, without waiting for the device.

    A positive is an (anchor, ground truth) pair that counts in the box loss. A pair that a matcher
    names twice is one positive: the statistics count the anchors of an object.

    Args:
        match: of the whole batch.
        ground_truth: boxes that were matched; padding does not count.
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
    return statistics_from_counts(count_matches(match, ground_truth, num_classes))


@torch.no_grad()
def count_matches(match: MatchResult, ground_truth: GroundTruth, num_classes: int) -> Tensor:
    """Return the counts behind :func:`match_statistics`: int64 (12,), as :data:`COUNTS`."""
    is_pair = _distinct_pairs(match, num_gt=ground_truth.valid.shape[1])
    area = box_area(ground_truth.boxes)
    positive = (match.labels != IGNORED) & (match.labels != num_classes)
    return torch.stack(
        [
            *(of_size.sum() for of_size in _by_size(ground_truth.valid, area)),
            *(
                (is_pair.sum(dim=2) * of_size).sum()
                for of_size in _by_size(ground_truth.valid, area)
            ),
            *_count_anchors(match.labels, positive),
            (positive & (is_pair.sum(dim=1) >= 2)).sum(),
        ]
    )


@torch.no_grad()
def count_labelled_anchors(
    labels: Tensor, matched_boxes: Tensor, ground_truth: GroundTruth, num_classes: int
) -> Tensor:
    """Count the matches of a model with at most one ground truth per anchor, such as RetinaNet.

    Args:
        labels: int64 (N, R), as those of a :class:`MatchResult`.
        matched_boxes: (N, R, 4) XYXY, the ground truth of each positive anchor.
        ground_truth: boxes that were matched.
        num_classes: K.

    Returns:
        int64 (12,), in the order of :data:`COUNTS`; no anchor is contested.
    """
    positive = (labels != IGNORED) & (labels != num_classes)
    return torch.stack(
        [
            *(of.sum() for of in _by_size(ground_truth.valid, box_area(ground_truth.boxes))),
            *(of.sum() for of in _by_size(positive, box_area(matched_boxes))),
            *_count_anchors(labels, positive),
            labels.new_zeros(()),
        ]
    )


def statistics_from_counts(counts: Tensor) -> dict[str, Tensor]:
    """Return :func:`match_statistics` of counts, (12,) in the order of :data:`COUNTS`."""
    count = dict(zip(COUNTS, counts, strict=True))
    anchors = count["anchors"]
    return {
        **{f"positives_per_gt{s}": count[f"positives{s}"] / count[f"gt{s}"] for s in _SCOPES},
        "ignored_anchor_share": count["ignored_anchors"] / anchors,
        "positive_anchor_share": count["positive_anchors"] / anchors,
        "contested_anchor_share": count["contested_anchors"]
        / count["positive_anchors"].clamp(min=1),
    }


def _by_size(mask: Tensor, area: Tensor) -> list[Tensor]:
    """Return ``mask`` for all sizes, and for each of :data:`SIZES`."""
    return [mask, *(mask & (lower <= area) & (area < upper) for lower, upper in SIZES.values())]


def _count_anchors(labels: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_anchors = torch.full((), labels.numel(), dtype=torch.int64, device=labels.device)
    return num_anchors, (labels == IGNORED).sum(), positive.sum()


def _distinct_pairs(match: MatchResult, num_gt: int) -> Tensor:
    """Return bool (N, M, R): whether ground truth and anchor are a pair that counts."""
    num_images, num_anchors = match.labels.shape
    # One slot more than there are pairs takes what does not count: every write is True, and their
    # order does not matter.
    slot = match.pair_gt_idx * num_anchors + match.pair_anchor_idx
    slot = slot.masked_fill(~match.pair_mask, num_gt * num_anchors)
    found = slot.new_zeros(num_images, num_gt * num_anchors + 1, dtype=torch.bool).scatter_(
        1, slot, True
    )
    return found[:, :-1].unflatten(1, (num_gt, num_anchors))
