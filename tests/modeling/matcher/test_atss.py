from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.matcher import ATSSMatcher

from . import helpers


def make_matcher(num_anchors: int, **options) -> ATSSMatcher:
    return ATSSMatcher(num_classes=helpers.NUM_CLASSES, num_anchors=num_anchors, **options)


class Loop(NamedTuple):
    """The oracle's result for one image."""

    owners: list[int | None]  # of each anchor
    is_clear: bool  # rounding cannot have decided whether an IoU reaches its threshold


def assign_by_loop(anchors: Tensor, num_anchors: int, topk: int, image: helpers.Image) -> Loop:
    """Assign in exact arithmetic: no square root is taken."""
    anchor_list = anchors.tolist()
    cells = [range(start, start + num_anchors) for start in range(0, len(anchor_list), num_anchors)]
    best: list[tuple[Fraction, int | None]] = [(Fraction(-1), None)] * len(anchor_list)
    is_clear = True
    for m, gt in enumerate(image.gt_boxes.tolist()):
        x, y = helpers.center(gt)

        def squared_distance(cell: range, x=x, y=y) -> float:
            center_x, center_y = helpers.center(anchor_list[cell[0]])
            return (center_x - x) ** 2 + (center_y - y) ** 2

        nearest = sorted(cells, key=squared_distance)[:topk]  # sorted() is stable
        overlaps = {r: helpers.iou(anchor_list[r], gt, Fraction) for cell in nearest for r in cell}
        mean = sum(overlaps.values()) / len(overlaps)
        variance = sum((x - mean) ** 2 for x in overlaps.values()) / max(1, len(overlaps) - 1)
        for r, overlap in overlaps.items():
            is_clear &= not variance or abs(float(overlap - mean) - float(variance) ** 0.5) > 1e-6
            wanted = overlap >= mean and (overlap - mean) ** 2 >= variance
            wanted = wanted and helpers.is_inside(helpers.center(anchor_list[r]), gt)
            if wanted and overlap > best[r][0]:
                best[r] = (overlap, m)
    return Loop([m for _, m in best], is_clear)


@st.composite
def batches(draw) -> tuple[Tensor, int, int, list[helpers.Image]]:
    anchors, num_anchors = draw(helpers.grids())
    return anchors, num_anchors, draw(st.integers(1, 20)), draw(helpers.image_lists(len(anchors)))


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_exact_arithmetic(batch):
    anchors, num_anchors, topk, images = batch
    match = helpers.run(anchors, images, make_matcher(num_anchors, topk=topk))
    for n, image in enumerate(images):
        expected = assign_by_loop(anchors, num_anchors, topk, image)
        assume(expected.is_clear)
        helpers.assert_owners(image, expected.owners, match, n)


@pytest.mark.parametrize("topk", [9, 15])
def test_agrees_with_the_loop_on_a_larger_map(topk):
    anchors = helpers.grid_anchors(6, 7)
    image = helpers.random_image(len(anchors), 40)
    match = helpers.run(anchors, [image], make_matcher(3, topk=topk))
    expected = assign_by_loop(anchors, 3, topk, image)
    assert expected.is_clear and len(set(expected.owners)) > 10
    helpers.assert_owners(image, expected.owners, match, 0)


def image_of(*gt_boxes: list[float], num_anchors: int) -> helpers.Image:
    classes = torch.arange(len(gt_boxes)) % helpers.NUM_CLASSES
    image = helpers.random_image(num_anchors, 0)
    return image._replace(gt_boxes=torch.tensor(gt_boxes), gt_classes=classes)


def test_positives_worked_out_by_hand():
    # One cell with anchors of 16, 32 and 64 pixels, and a box of 32: IoUs 1/4, 1, 1/4, mean 1/2,
    # unbiased deviation sqrt(3/16) = 0.433, threshold 0.933.
    anchors = helpers.grid_anchors(1, 1)
    image = image_of([-16.0, -16.0, 16.0, 16.0], num_anchors=3)
    helpers.assert_owners(image, [None, 0, None], helpers.run(anchors, [image], make_matcher(3)), 0)
    # A box of 16 x 64: IoUs 1/4, 1/3, 1/4: threshold 0.278 + 0.048.
    image = image_of([-8.0, -32.0, 8.0, 32.0], num_anchors=3)
    helpers.assert_owners(image, [None, 0, None], helpers.run(anchors, [image], make_matcher(3)), 0)


def test_the_deviation_is_the_unbiased_one():
    # IoUs of the anchors of 16 and 12 with a box of 16: 1 and 9/16. The mean is 25/32; the unbiased
    # deviation 7 sqrt(2) / 32 lies above 7/32, which is what the mean lacks to 1; the biased one is
    # just that.
    anchors = helpers.grid_anchors(1, 1, sizes=(16, 12))
    image = image_of([-8.0, -8.0, 8.0, 8.0], num_anchors=2)
    assert not helpers.run(anchors, [image], make_matcher(2)).pair_mask.any()


def test_equal_overlaps_all_reach_their_own_mean():
    anchors = helpers.grid_anchors(1, 1, sizes=(3.0,) * 7)
    image = image_of([-3.0, -2.0, 4.0, 5.0], num_anchors=7)  # IoU 9/49 each
    assert helpers.run(anchors, [image], make_matcher(7)).pair_mask.all()


def test_impossible_settings_are_refused():
    message = "^MODEL.YOLOF.MATCHER.ATSS.TOPK must be 1 or more, got 0"
    with pytest.raises(ConfigError, match=message):
        make_matcher(3, topk=0)
