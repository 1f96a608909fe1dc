from __future__ import annotations

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.matcher import MaxIoUMatcher
from yolof_d2.modeling.matcher.build import IGNORED

from .helpers import (
    NUM_CLASSES,
    Image,
    assert_owners,
    boxes,
    grid_anchors,
    image_lists,
    iou,
    random_image,
    run,
)


def make_matcher(**options) -> MaxIoUMatcher:
    return MaxIoUMatcher(num_classes=NUM_CLASSES, **options)


def assign_by_loop(
    anchors: Tensor, image: Image, neg_iou: float, pos_iou: float, allow_low_quality: bool
) -> tuple[list[int | None], tuple[int, ...]]:
    """Owner of each anchor, and the anchors that are ignored."""
    gts = image.gt_boxes.tolist()
    overlaps = [[iou(anchor, gt) for gt in gts] for anchor in anchors.tolist()]
    owners: list[int | None] = []
    ignored = []
    for r, of_anchor in enumerate(overlaps):
        highest = max(of_anchor, default=0)
        is_best_of_some = any(
            of_anchor[m] > 0 and of_anchor[m] == max(other[m] for other in overlaps)
            for m in range(len(gts))
        )
        positive = highest >= pos_iou or (allow_low_quality and is_best_of_some)
        owners.append(of_anchor.index(highest) if positive else None)
        if highest >= neg_iou:
            ignored.append(r)
    return owners, tuple(ignored)


@st.composite
def batches(draw) -> tuple[Tensor, list[Image], dict]:
    num_anchors = draw(st.integers(1, 10))
    neg_iou, pos_iou = sorted(
        draw(st.lists(st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0]), min_size=2, max_size=2))
    )
    options = {"neg_iou": neg_iou, "pos_iou": pos_iou, "allow_low_quality": draw(st.booleans())}
    return draw(boxes(num_anchors, smallest=1)), draw(image_lists(num_anchors)), options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_a_loop_in_python(batch):
    anchors, images, options = batch
    match = run(anchors, images, make_matcher(**options))
    for n, image in enumerate(images):
        owners, ignored = assign_by_loop(anchors, image, **options)
        assert_owners(image, owners, match, n, ignored)


def assert_agrees_with_detectron2(anchors, image, match, n, neg_iou, pos_iou, allow_low_quality):
    overlaps = pairwise_iou(Boxes(image.gt_boxes), Boxes(anchors))
    theirs = Matcher([neg_iou, pos_iou], [0, -1, 1], allow_low_quality_matches=allow_low_quality)
    gt_idx, labels = theirs(overlaps)
    expected = torch.full_like(match.labels[n], NUM_CLASSES)
    expected[labels == -1] = IGNORED
    if len(overlaps):
        expected[labels == 1] = image.gt_classes[gt_idx[labels == 1]]
    assert torch.equal(match.labels[n], expected)
    assert torch.equal(match.pair_mask[n], labels == 1)
    assert torch.equal(match.pair_gt_idx[n][labels == 1], gt_idx[labels == 1])


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_the_matcher_of_detectron2(batch):
    anchors, images, options = batch
    touched = [
        (pairwise_iou(Boxes(image.gt_boxes), Boxes(anchors)) > 0).any(dim=1) for image in images
    ]
    if options["allow_low_quality"]:  # see the next test for those that no anchor touches
        images = [
            image._replace(gt_boxes=image.gt_boxes[keep], gt_classes=image.gt_classes[keep])
            for image, keep in zip(images, touched, strict=True)
        ]
    match = run(anchors, images, make_matcher(**options))
    for n, image in enumerate(images):
        assert_agrees_with_detectron2(anchors, image, match, n, **options)


def test_a_box_that_no_anchor_touches_makes_none_positive():
    anchors = grid_anchors(2, 2)
    gt_boxes = torch.tensor([[500.0, 500.0, 510.0, 510.0]])
    image = random_image(12, 1)._replace(gt_boxes=gt_boxes)
    match = run(anchors, [image], make_matcher())
    assert (match.labels == NUM_CLASSES).all() and not match.pair_mask.any()


def test_a_low_quality_anchor_belongs_to_the_box_that_it_overlaps_most_itself():
    # The anchor is the best of both boxes, at IoU 1/10 and 4/10.
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 10.0, 4.0]])
    image = Image(anchors.clone(), gt_boxes, torch.tensor([1, 2]), torch.zeros(1, NUM_CLASSES))
    match = run(anchors, [image], make_matcher(neg_iou=0.4, pos_iou=0.5))
    assert (match.labels.tolist(), match.pair_gt_idx.tolist()) == ([[2]], [[1]])
    match = run(anchors, [image], make_matcher(neg_iou=0.4, pos_iou=0.5, allow_low_quality=False))
    assert match.labels.tolist() == [[IGNORED]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neg_iou": 0.0}, r"NEG_IOU must lie in \(0, POS_IOU\], which is \(0, 0.5\], got 0.0"),
        ({"neg_iou": 0.6}, r"NEG_IOU must lie in \(0, POS_IOU\], which is \(0, 0.5\], got 0.6"),
        ({"pos_iou": 1.1}, r"POS_IOU must lie in \(0, 1\], got 1.1"),
        ({"pos_iou": float("nan")}, r"POS_IOU must lie in \(0, 1\], got nan"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^MODEL.YOLOF.MATCHER.MAX_IOU.{message}"):
        make_matcher(**options)
