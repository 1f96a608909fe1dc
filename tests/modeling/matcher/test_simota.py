from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.matcher import SimOTAMatcher

from . import helpers

STRIDE = 4


def make_matcher(stride: int = STRIDE, **options) -> SimOTAMatcher:
    return SimOTAMatcher(num_classes=helpers.NUM_CLASSES, stride=stride, **options)


def cross_entropy(logits: Sequence[float], positive: int) -> float:
    """-log(sigmoid) of the positive class, -log(1 - sigmoid) of the others."""
    return sum(
        math.log1p(math.exp(-logit if k == positive else logit)) for k, logit in enumerate(logits)
    )


class Loop(NamedTuple):
    """The oracle's result for one image."""

    owners: list[int | None]  # of each anchor
    is_clear: bool  # rounding cannot have decided


class Entry(NamedTuple):
    cost: float
    index: int  # an anchor, or a ground truth
    origin: object  # what the cost was computed from: the same gives the same cost in float32 too


def is_clear_cut(chosen: list[Entry], rest: list[Entry]) -> bool:
    return all(a.origin == b.origin or b.cost - a.cost > 1e-4 for a in chosen for b in rest)


def assign_by_loop(
    anchors: Tensor,
    image: helpers.Image,
    stride: int = STRIDE,
    *,
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    cls_weight: float = 1.0,
    iou_weight: float = 3.0,
) -> Loop:
    anchor_list, preds = anchors.tolist(), image.pred_boxes.tolist()
    logits, reach = image.pred_logits.tolist(), center_radius * stride
    wanting: list[list[Entry]] = [[] for _ in anchor_list]
    is_clear = True
    for m, gt in enumerate(image.gt_boxes.tolist()):
        class_id, (x, y) = int(image.gt_classes[m]), helpers.center(gt)
        square = [x - reach, y - reach, x + reach, y + reach]
        costs, overlaps = [], []
        for r, anchor in enumerate(anchor_list):
            in_box, in_square = (
                helpers.is_inside(helpers.center(anchor), region) for region in (gt, square)
            )
            if in_box or in_square:
                overlap, outside = helpers.iou(preds[r], gt), not (in_box and in_square)
                cost = cls_weight * cross_entropy(logits[r], class_id)
                cost += iou_weight * -math.log(max(overlap, 1e-8)) + 1e5 * outside
                costs.append(Entry(cost, r, (logits[r], class_id, overlap, outside)))
                overlaps.append(overlap)
        total = sum(sorted(overlaps, reverse=True)[:candidate_topk])
        if any(0 < overlap < 1 for overlap in overlaps):
            is_clear &= round(total) == 0 or abs(total - round(total)) > 1e-4
        k = max(1, int(total))
        costs.sort(key=lambda entry: entry[:2])
        is_clear &= is_clear_cut(costs[:k], costs[k:])
        for cost, r, origin in costs[:k]:
            wanting[r].append(Entry(cost, m, origin))
    for entries in wanting:
        entries.sort(key=lambda entry: entry[:2])
        is_clear &= is_clear_cut(entries[:1], entries[1:])
    return Loop([entries[0].index if entries else None for entries in wanting], is_clear)


@st.composite
def batches(draw) -> tuple[Tensor, list[helpers.Image], dict]:
    anchors, _ = draw(helpers.grids(STRIDE))
    options = {
        "center_radius": draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        "candidate_topk": draw(st.sampled_from([1, 3, 10, 100])),
        "cls_weight": draw(st.sampled_from([0.0, 1.0, 5.0])),
        "iou_weight": draw(st.sampled_from([0.0, 0.5, 3.0])),
    }
    images = draw(helpers.image_lists(len(anchors), max_gt=3))
    if draw(st.booleans()):  # good predictions, so that k grows
        moved = draw(st.integers(0, 1))
        images = [
            image._replace(pred_boxes=image.gt_boxes[:1].expand(len(anchors), 4) + moved)
            for image in images
            if len(image.gt_boxes)
        ] or images
    return anchors, images, options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_float64(batch):
    anchors, images, options = batch
    match = helpers.run(anchors, images, make_matcher(**options))
    for n, image in enumerate(images):
        expected = assign_by_loop(anchors, image, **options)
        assume(expected.is_clear)
        helpers.assert_owners(image, expected.owners, match, n)


def near_gts(anchors: Tensor, num_gt: int, seed: int) -> helpers.Image:
    """Boxes with predictions that overlap them, so that there are many positives."""
    generator = torch.Generator().manual_seed(seed)
    image = helpers.random_image(len(anchors), num_gt, seed)
    noise = torch.rand(len(anchors), 4, generator=generator) * 16
    nearest = torch.cdist(
        (anchors[:, :2] + anchors[:, 2:]) / 2, (image.gt_boxes[:, :2] + image.gt_boxes[:, 2:]) / 2
    ).argmin(dim=1)
    return image._replace(pred_boxes=image.gt_boxes[nearest] + noise)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weights", [(1.0, 3.0), (5.0, 0.5)])
def test_agrees_with_the_loop_on_a_larger_map(seed, weights):
    options = dict(zip(("cls_weight", "iou_weight"), weights, strict=True))
    anchors = helpers.grid_anchors(5, 6)
    image = near_gts(anchors, 12, seed)
    match = helpers.run(anchors, [image], make_matcher(stride=32, **options))
    expected = assign_by_loop(anchors, image, stride=32, **options)
    assert expected.is_clear and max(expected.owners.count(m) for m in range(12)) >= 4
    helpers.assert_owners(image, expected.owners, match, 0)


def image_of(*gt_boxes: list[float], pred_boxes: Tensor) -> helpers.Image:
    classes = torch.arange(len(gt_boxes)) % helpers.NUM_CLASSES
    logits = torch.zeros(len(pred_boxes), helpers.NUM_CLASSES)
    return helpers.Image(pred_boxes, torch.tensor(gt_boxes), classes, logits)


def test_the_number_of_positives_follows_the_predictions_and_ties_go_to_the_first():
    anchors = helpers.grid_anchors(1, 5, sizes=(4,), stride=4)
    gt_box = [-2.0, -2.0, 18.0, 2.0]  # around all five centres
    exact, half = torch.tensor(gt_box), torch.tensor([-2.0, -2.0, 8.0, 2.0])
    for pred_box, topk, num_positive in (
        (exact, 10, 5),
        (exact, 3, 3),
        (half, 10, 2),  # 5 x 1/2, rounded down
        (half, 1, 1),  # 1/2, at least 1
        (half + 50, 10, 1),
    ):
        image = image_of(gt_box, pred_boxes=pred_box.repeat(5, 1))
        match = helpers.run(anchors, [image], make_matcher(candidate_topk=topk))
        owners = [0] * num_positive + [None] * (5 - num_positive)
        helpers.assert_owners(image, owners, match, 0)


def test_a_centre_in_box_and_square_goes_before_any_other_whatever_its_cost():
    # Centres 0 to 12 of a box around 1..13, whose square is 5..9: only 8 lies in both.
    anchors = helpers.grid_anchors(1, 4, sizes=(4,), stride=4)
    gt_box = [1.0, -2.0, 13.0, 2.0]
    pred_boxes = torch.tensor(gt_box).repeat(4, 1)
    pred_boxes[2] += 500
    image = image_of(gt_box, pred_boxes=pred_boxes)
    logits = image.pred_logits.clone()
    logits[2, 0] = -1000
    image = image._replace(pred_logits=logits)
    match = helpers.run(anchors, [image], make_matcher(center_radius=0.5, candidate_topk=1))
    helpers.assert_owners(image, [None, None, 0, None], match, 0)


def test_outside_the_square_small_differences_of_cost_still_decide():
    # In float32, 100000 + 0.001 is 100000.
    anchors = helpers.grid_anchors(1, 4, sizes=(4,), stride=4)
    image = image_of([3.0, -2.0, 3.5, 2.0], pred_boxes=torch.zeros(4, 4))
    logits = image.pred_logits.clone()
    logits[:, 0] = torch.tensor([0.0, 0.001, 0.002, 0.0])
    image = image._replace(pred_logits=logits)
    match = helpers.run(anchors, [image], make_matcher())
    helpers.assert_owners(image, [None, None, 0, None], match, 0)


def test_a_prediction_that_is_not_finite_is_the_last_choice_and_does_not_add_to_k():
    anchors = helpers.grid_anchors(1, 3, sizes=(4,), stride=4)
    gt_box = [-2.0, -2.0, 10.0, 2.0]
    image = image_of(gt_box, pred_boxes=torch.tensor(gt_box).repeat(3, 1))
    logits, pred_boxes = image.pred_logits.clone(), image.pred_boxes.clone()
    logits[0] = math.nan
    pred_boxes[1] = math.nan
    image = image._replace(pred_boxes=pred_boxes, pred_logits=logits)
    match = helpers.run(anchors, [image], make_matcher(candidate_topk=1))
    helpers.assert_owners(image, [None, None, 0], match, 0)
    # Two perfect overlaps, those of the first and the last: the one that is NaN counts as none.
    match = helpers.run(anchors, [image], make_matcher())
    assert match.pair_mask.sum() == 2
    # When nothing else is left, it is taken all the same.
    match = helpers.run(anchors, [image._replace(pred_logits=logits + math.nan)], make_matcher())
    assert match.pair_mask.sum() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_topk": 0}, "CANDIDATE_TOPK must be 1 or more, got 0"),
        ({"center_radius": -1.0}, "CENTER_RADIUS must be 0 or more, and finite, got -1.0"),
        ({"cls_weight": float("nan")}, "CLS_WEIGHT must be 0 or more, and finite, got nan"),
        ({"iou_weight": float("inf")}, "IOU_WEIGHT must be 0 or more, and finite, got inf"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^MODEL.YOLOF.MATCHER.SIMOTA.{message}"):
        make_matcher(**options)
