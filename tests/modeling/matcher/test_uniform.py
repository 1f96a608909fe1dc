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

from .helpers import (
    NUM_CLASSES,
    Box,
    Image,
    assert_ranking_labels,
    boxes,
    grid_anchors,
    image_lists,
    iou,
    random_image,
    real_pairs,
    run,
)


def make_matcher(**options) -> UniformMatcher:
    return UniformMatcher(num_classes=NUM_CLASSES, **options)


def l1_distance(a: Box, b: Box) -> float:
    centers = abs(a[0] + a[2] - b[0] - b[2]) / 2 + abs(a[1] + a[3] - b[1] - b[3]) / 2
    return centers + abs(a[2] - a[0] - b[2] + b[0]) + abs(a[3] - a[1] - b[3] + b[1])


def assert_agrees_with_oracle(
    anchors: Tensor,
    image: Image,
    match: MatchResult,
    n: int,
    matcher: UniformMatcher,
    candidates: tuple[str, ...] = ("predictions", "anchors"),
) -> None:
    anchor_list, gts = anchors.tolist(), image.gt_boxes.tolist()
    every = {"predictions": image.pred_boxes.tolist(), "anchors": anchor_list}
    lists = [every[name] for name in candidates]
    pairs = real_pairs(match, n, len(gts))
    k = min(matcher.topk, len(anchor_list))
    assert len(pairs) == k * len(lists) * len(gts)

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
        assert counts == (iou(anchor_list[anchor], gts[m]) >= matcher.pos_ignore_iou)
        taken[which, m].append(anchor)
    assert all(len(set(indices)) == k for indices in taken.values())
    assert_ranking_labels(image, pairs, matcher.neg_ignore_iou, match, n)


@st.composite
def batches(draw) -> tuple[Tensor, list[Image], dict]:
    num_anchors = draw(st.integers(1, 10))
    options = {
        "topk": draw(st.integers(1, 6)),
        "pos_ignore_iou": draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        "neg_ignore_iou": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    }
    return draw(boxes(num_anchors, smallest=1)), draw(image_lists(num_anchors)), options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_python(batch):
    anchors, images, options = batch
    matcher = make_matcher(**options)
    match = run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


@pytest.mark.parametrize("name", ["predictions", "anchors"])
@settings(deadline=None, max_examples=40)
@given(batch=batches())
def test_one_kind_of_candidate_leaves_the_other_out(name, batch):
    anchors, images, options = batch
    matcher = make_matcher(candidates=[name], **options)
    match = run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher, (name,))


def test_the_order_of_the_candidates_in_the_config_does_not_matter():
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), 4)]
    one, other = (
        run(anchors, images, make_matcher(candidates=names))
        for names in (["predictions", "anchors"], ["anchors", "predictions"])
    )
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert torch.equal(a, b)


def test_topk_above_the_number_of_anchors_takes_all_of_them():
    anchors = grid_anchors(1, 1)
    match = run(anchors, [random_image(3, 2)], make_matcher(topk=8, pos_ignore_iou=0.0))
    assert match.pair_anchor_idx.shape == (1, 3 * 2 * 2)
    assert match.pair_mask.all()
    for m in (0, 1):
        anchor_idx = match.pair_anchor_idx[match.pair_gt_idx == m]
        assert sorted(anchor_idx.tolist()) == [0, 0, 1, 1, 2, 2]


def test_500_boxes_on_one_image():
    anchors = grid_anchors(4, 5)
    images = [random_image(len(anchors), 500), random_image(len(anchors), 1)]
    matcher = make_matcher()
    match = run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


@pytest.mark.parametrize("classes", [[1, 2], [2, 1], [0, 2, 1]])
def test_of_identical_boxes_the_last_gives_the_label_and_all_count_in_the_box_loss(classes):
    anchors = grid_anchors(2, 2)
    gt_boxes = anchors[4].repeat(len(classes), 1)
    image = Image(anchors.clone(), gt_boxes, torch.tensor(classes), torch.zeros(12, NUM_CLASSES))
    match = run(anchors, [image], make_matcher())
    assert match.labels[0, 4] == classes[-1]
    positive = (match.labels != IGNORED) & (match.labels != NUM_CLASSES)
    assert (match.labels[positive] == classes[-1]).all()
    for m in range(len(classes)):
        anchor_idx = match.pair_anchor_idx[(match.pair_gt_idx == m) & match.pair_mask]
        assert anchor_idx.tolist().count(4) == 2  # from the predictions, and from the anchors


def test_a_1_pixel_box_is_paired_but_its_far_too_large_anchors_are_ignored():
    anchors = grid_anchors(2, 2)
    gt_boxes = torch.tensor([[31.0, 31.0, 32.0, 32.0]])
    image = Image(anchors.clone(), gt_boxes, torch.tensor([1]), torch.zeros(12, NUM_CLASSES))
    matcher = make_matcher()
    match = run(anchors, [image], matcher)
    assert not match.pair_mask.any()
    assert match.labels[0].tolist().count(IGNORED) == 4  # both lists name the same four
    assert_agrees_with_oracle(anchors, image, match, 0, matcher)


def test_result_has_the_documented_shapes():
    anchors = grid_anchors(2, 2)
    match = run(anchors, [random_image(12, 3), random_image(12, 2)], make_matcher(topk=4))
    assert match.labels.shape == (2, 12)
    pairs = (match.pair_anchor_idx, match.pair_gt_idx, match.pair_mask)
    assert {tuple(column.shape) for column in pairs} == {(2, 4 * 2 * 3)}


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
