from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling import MatchResult
from yolof_d2.modeling.matcher import UniformMatcher
from yolof_d2.modeling.matcher.build import IGNORED

from . import helpers

CANDIDATES = [["predictions", "anchors"], ["anchors", "predictions"], ["predictions"], ["anchors"]]


def make_matcher(**options) -> UniformMatcher:
    return UniformMatcher(num_classes=helpers.NUM_CLASSES, **options)


def l1_distance(a: helpers.Box, b: helpers.Box) -> float:
    centers = abs(a[0] + a[2] - b[0] - b[2]) / 2 + abs(a[1] + a[3] - b[1] - b[3]) / 2
    return centers + abs(a[2] - a[0] - b[2] + b[0]) + abs(a[3] - a[1] - b[3] + b[1])


def assert_agrees_with_oracle(
    anchors: Tensor, image: helpers.Image, match: MatchResult, n: int, matcher: UniformMatcher
) -> None:
    anchor_list, gts = anchors.tolist(), image.gt_boxes.tolist()
    every = {"predictions": image.pred_boxes.tolist(), "anchors": anchor_list}  # in this order
    lists = [boxes for name, boxes in every.items() if name in matcher.candidates]
    pairs = helpers.real_pairs(match, n, len(gts))
    k = min(matcher.topk, len(anchor_list))
    assert len(pairs) == k * len(lists) * len(gts)

    assert match.pair_mask.shape[1] % (k * len(lists)) == 0  # the rest is padding

    # Which pairs, in the documented order: rank, list, ground truth. Equally near boxes may be
    # taken either way: their costs are compared, not their indices.
    ranked = {
        (which, m): sorted(l1_distance(box, gt) for box in boxes)
        for which, boxes in enumerate(lists)
        for m, gt in enumerate(gts)
    }
    taken: dict[tuple[int, int], list[int]] = {key: [] for key in ranked}
    order = [
        (rank, which, m)
        for rank in range(k)
        for which in range(len(lists))
        for m in range(len(gts))
    ]
    for (rank, which, m), (anchor, gt, counts) in zip(order, pairs, strict=True):
        assert gt == m
        assert l1_distance(lists[which][anchor], gts[m]) == ranked[which, m][rank]
        assert counts == (helpers.iou(anchor_list[anchor], gts[m]) >= matcher.pos_ignore_iou)
        taken[which, m].append(anchor)
    assert all(len(set(indices)) == k for indices in taken.values())
    helpers.assert_ranking_labels(image, pairs, matcher.neg_ignore_iou, match, n)


@st.composite
def batches(draw) -> tuple[Tensor, list[helpers.Image], dict]:
    num_anchors = draw(st.integers(1, 10))
    options = {
        "topk": draw(st.integers(1, 12)),
        "candidates": draw(st.sampled_from(CANDIDATES)),
        "pos_ignore_iou": draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        "neg_ignore_iou": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    }
    anchors = draw(helpers.boxes(num_anchors, smallest=1))
    return anchors, draw(helpers.image_lists(num_anchors)), options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_python(batch):
    anchors, images, options = batch
    matcher = make_matcher(**options)
    match = helpers.run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


def test_500_boxes_on_one_image():
    anchors = helpers.grid_anchors(4, 5)
    images = [helpers.random_image(len(anchors), 500), helpers.random_image(len(anchors), 1)]
    matcher = make_matcher()
    match = helpers.run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


@pytest.mark.parametrize("classes", [[1, 2], [2, 1], [0, 2, 1]])
def test_of_identical_boxes_the_last_gives_the_label_and_all_count_in_the_box_loss(classes):
    anchors = helpers.grid_anchors(2, 2)
    gt_boxes = anchors[4].repeat(len(classes), 1)
    image = helpers.Image(
        anchors.clone(), gt_boxes, torch.tensor(classes), torch.zeros(12, helpers.NUM_CLASSES)
    )
    match = helpers.run(anchors, [image], make_matcher())
    assert match.labels[0, 4] == classes[-1]
    positive = (match.labels != IGNORED) & (match.labels != helpers.NUM_CLASSES)
    assert (match.labels[positive] == classes[-1]).all()
    for m in range(len(classes)):
        anchor_idx = match.pair_anchor_idx[(match.pair_gt_idx == m) & match.pair_mask]
        assert anchor_idx.tolist().count(4) == 2  # from the predictions, and from the anchors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "TOPK must be 1 or more, got 0"),
        ({"pos_ignore_iou": 1.5}, r"POS_IGNORE_IOU must lie in \[0, 1\], got 1.5"),
        ({"neg_ignore_iou": -0.1}, r"NEG_IGNORE_IOU must lie in \[0, 1\], got -0.1"),
        ({"neg_ignore_iou": float("nan")}, r"NEG_IGNORE_IOU must lie in \[0, 1\], got nan"),
        ({"candidates": []}, r"CANDIDATES must name .*'predictions', 'anchors'.*got \[\]"),
        ({"candidates": ["anchor"]}, r"CANDIDATES must name .*got \['anchor'\]"),
        ({"candidates": ["anchors", "boxes"]}, r"CANDIDATES must name"),
        ({"candidates": ["anchors", "anchors"]}, r"CANDIDATES must name"),
        ({"candidates": "anchors"}, r"CANDIDATES must name"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^MODEL.YOLOF.MATCHER.UNIFORM.{message}"):
        make_matcher(**options)
