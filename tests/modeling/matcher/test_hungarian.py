from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling import MatchResult
from yolof_d2.modeling.matcher import HungarianMatcher

from . import helpers

STRIDE = 4
WEIGHTS = {"cls_weight": 2.0, "l1_weight": 5.0, "giou_weight": 2.0}


def make_matcher(stride: int = STRIDE, **options) -> HungarianMatcher:
    return HungarianMatcher(num_classes=helpers.NUM_CLASSES, stride=stride, **options)


def generalized_iou(a: helpers.Box, b: helpers.Box) -> float:
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) / (1 + helpers.iou(a, b))
    return helpers.iou(a, b) - (hull - union) / hull


def costs_by_loop(
    anchors: Tensor,
    image: helpers.Image,
    stride: int = STRIDE,
    *,
    cls_weight: float,
    l1_weight: float,
    giou_weight: float,
) -> list[list[float]]:
    """Cost of each ground truth (row) and anchor (column), in float64."""
    centers = [helpers.center(anchor) for anchor in anchors.tolist()]
    width, height = (
        max(c[i] for c in centers) - min(c[i] for c in centers) + stride for i in (0, 1)
    )
    costs = []
    for gt, class_id in zip(image.gt_boxes.tolist(), image.gt_classes.tolist(), strict=True):
        row = []
        for box, logits in zip(image.pred_boxes.tolist(), image.pred_logits.tolist(), strict=True):
            p = 1 / (1 + math.exp(-logits[class_id]))
            cls = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
            (x, y), (gt_x, gt_y) = helpers.center(box), helpers.center(gt)
            l1 = (abs(x - gt_x) + abs(box[2] - box[0] - gt[2] + gt[0])) / width
            l1 += (abs(y - gt_y) + abs(box[3] - box[1] - gt[3] + gt[1])) / height
            giou = 1 - generalized_iou(box, gt)
            row.append(cls_weight * cls + l1_weight * l1 + giou_weight * giou)
        costs.append(row)
    return costs


def found_pairs(match: MatchResult, n: int) -> list[tuple[int, int]]:
    """Ground truth and anchor of each pair."""
    anchor_idx = match.pair_anchor_idx[n][match.pair_mask[n]].tolist()
    return list(zip(match.pair_gt_idx[n][match.pair_mask[n]].tolist(), anchor_idx, strict=True))


@st.composite
def batches(draw) -> tuple[Tensor, list[helpers.Image], dict]:
    anchors, _ = draw(helpers.grids(STRIDE).filter(lambda grid: len(grid[0]) <= 6))
    weights = {name: draw(st.sampled_from([0.0, weight, 10.0])) for name, weight in WEIGHTS.items()}
    return anchors, draw(helpers.image_lists(len(anchors), max_gt=4)), weights


@settings(deadline=None, max_examples=100)
@given(batches())
def test_the_total_cost_is_the_lowest_of_all_one_to_one_assignments(batch):
    anchors, images, weights = batch
    match = helpers.run(anchors, images, make_matcher(**weights))
    for n, image in enumerate(images):
        pairs = found_pairs(match, n)
        gts, assigned = ([pair[i] for pair in pairs] for i in (0, 1))
        assert len(set(gts)) == len(set(assigned)) == min(len(image.gt_boxes), len(anchors))
        if pairs:
            costs = costs_by_loop(anchors, image, **weights)
            total = sum(costs[m][r] for m, r in pairs)
            lowest = np.array(costs)[linear_sum_assignment(costs)].sum()
            assert total == pytest.approx(lowest, abs=1e-3)
        owners = [dict(zip(assigned, gts, strict=True)).get(r) for r in range(len(anchors))]
        helpers.assert_owners(image, owners, match, n)


@pytest.mark.parametrize("num_gt", [1, 20, 70])
def test_agrees_with_scipy_on_a_cost_of_its_own(num_gt):
    anchors = helpers.grid_anchors(4, 5)
    image = helpers.random_image(len(anchors), num_gt)
    match = helpers.run(anchors, [image], make_matcher(stride=32))
    costs = np.array(costs_by_loop(anchors, image, stride=32, **WEIGHTS))
    expected = sorted(zip(*(idx.tolist() for idx in linear_sum_assignment(costs)), strict=True))
    assert sorted(found_pairs(match, 0)) == expected
    assert len(expected) == min(num_gt, 60)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_predictions_that_are_not_finite_are_the_last_choice(value):
    anchors = helpers.grid_anchors(2, 2, sizes=(32,))
    image = helpers.random_image(4, 2)
    pred_boxes, logits = image.pred_boxes.clone(), image.pred_logits.clone()
    pred_boxes[0] = value
    logits[2] = math.nan
    image = image._replace(pred_boxes=pred_boxes, pred_logits=logits)
    match = helpers.run(anchors, [image], make_matcher(stride=32))
    assert match.pair_mask.tolist() == [[False, True, False, True]]
    only_bad = image._replace(pred_boxes=pred_boxes[:1].repeat(4, 1))
    assert helpers.run(anchors, [only_bad], make_matcher(stride=32)).pair_mask.sum() == 2


@pytest.mark.parametrize("name", ["cls_weight", "l1_weight", "giou_weight"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused(name, value):
    message = f"^MODEL.YOLOF.MATCHER.HUNGARIAN.{name.upper()} must be 0 or more, and finite, got"
    with pytest.raises(ConfigError, match=message):
        make_matcher(**{name: value})
