from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.matcher import TopKIoUMatcher

from . import helpers


def make_matcher(**options) -> TopKIoUMatcher:
    return TopKIoUMatcher(num_classes=helpers.NUM_CLASSES, **options)


def pairs_by_loop(
    anchors: Tensor, image: helpers.Image, topk: int, pos_ignore_iou: float
) -> list[tuple[int, int, bool]]:
    """Pairs by rank, then ground truth; none without overlap."""
    rankings = []
    for gt in image.gt_boxes.tolist():
        overlaps = [helpers.iou(anchor, gt) for anchor in anchors.tolist()]
        order = sorted(range(len(overlaps)), key=lambda r: (-overlaps[r], r))
        rankings.append([(r, overlaps[r]) for r in order[:topk] if overlaps[r] > 0])
    return [
        (ranking[rank][0], m, ranking[rank][1] >= pos_ignore_iou)
        for rank in range(topk)
        for m, ranking in enumerate(rankings)
        if rank < len(ranking)
    ]


@st.composite
def batches(draw) -> tuple[Tensor, list[helpers.Image], dict]:
    num_anchors = draw(st.integers(1, 10))
    options = {
        "topk": draw(st.integers(1, 12)),
        "pos_ignore_iou": draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        "neg_ignore_iou": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    }
    anchors = draw(helpers.boxes(num_anchors, smallest=1))
    return anchors, draw(helpers.image_lists(num_anchors)), options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_python(batch):
    anchors, images, options = batch
    match = helpers.run(anchors, images, make_matcher(**options))
    for n, image in enumerate(images):
        pairs = pairs_by_loop(anchors, image, options["topk"], options["pos_ignore_iou"])
        counting = [pair for pair in helpers.real_pairs(match, n, len(image.gt_boxes)) if pair[2]]
        assert counting == [pair for pair in pairs if pair[2]]
        helpers.assert_ranking_labels(image, pairs, options["neg_ignore_iou"], match, n)


def test_500_boxes_on_one_image():
    anchors = helpers.grid_anchors(4, 5)
    image = helpers.random_image(len(anchors), 500)
    match = helpers.run(anchors, [image], make_matcher())
    pairs = pairs_by_loop(anchors, image, 4, 0.15)
    assert [p for p in helpers.real_pairs(match, 0, 500) if p[2]] == [p for p in pairs if p[2]]
    helpers.assert_ranking_labels(image, pairs, 0.7, match, 0)


def test_of_equal_overlaps_the_first_anchors_are_taken():
    anchors = torch.tensor([0.0, 0.0, 8.0, 8.0]).repeat(300, 1)
    image = helpers.random_image(300, 0)._replace(
        gt_boxes=anchors[:1].clone(), gt_classes=torch.tensor([2])
    )
    match = helpers.run(anchors, [image], make_matcher(topk=5, neg_ignore_iou=1.0))
    assert match.labels[0].tolist() == [2] * 5 + [helpers.NUM_CLASSES] * 295


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "TOPK must be 1 or more, got 0"),
        ({"pos_ignore_iou": 1.5}, r"POS_IGNORE_IOU must lie in \[0, 1\], got 1.5"),
        ({"neg_ignore_iou": -0.1}, r"NEG_IGNORE_IOU must lie in \[0, 1\], got -0.1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^MODEL.YOLOF.MATCHER.TOPK_IOU.{message}"):
        make_matcher(**options)
