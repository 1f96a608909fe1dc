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

from . import helpers


def make_matcher(**options) -> MaxIoUMatcher:
    return MaxIoUMatcher(num_classes=helpers.NUM_CLASSES, **options)


@st.composite
def batches(draw) -> tuple[Tensor, list[helpers.Image], dict]:
    num_anchors = draw(st.integers(1, 10))
    neg_iou, pos_iou = sorted(
        draw(st.lists(st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0]), min_size=2, max_size=2))
    )
    options = {"neg_iou": neg_iou, "pos_iou": pos_iou, "allow_low_quality": draw(st.booleans())}
    anchors = draw(helpers.boxes(num_anchors, smallest=1))
    return anchors, draw(helpers.image_lists(num_anchors)), options


@settings(deadline=None, max_examples=100)
@given(batches())
def test_agrees_with_the_matcher_of_detectron2(batch):
    anchors, images, options = batch
    thresholds, low_quality = [options["neg_iou"], options["pos_iou"]], options["allow_low_quality"]
    theirs = Matcher(thresholds, [0, -1, 1], allow_low_quality_matches=low_quality)
    overlaps = [pairwise_iou(Boxes(image.gt_boxes), Boxes(anchors)) for image in images]
    if low_quality:  # see the next test for boxes that no anchor touches
        for n, image in enumerate(images):
            keep = (overlaps[n] > 0).any(dim=1)
            overlaps[n] = overlaps[n][keep]
            classes = image.gt_classes[keep]
            images[n] = image._replace(gt_boxes=image.gt_boxes[keep], gt_classes=classes)
    match = helpers.run(anchors, images, make_matcher(**options))
    for n, image in enumerate(images):
        gt_idx, labels = (values.tolist() for values in theirs(overlaps[n]))
        owners = [gt if label == 1 else None for gt, label in zip(gt_idx, labels, strict=True)]
        ignored = tuple(r for r, label in enumerate(labels) if label == -1)
        helpers.assert_owners(image, owners, match, n, ignored)


def test_a_box_that_no_anchor_touches_makes_none_positive():
    anchors = helpers.grid_anchors(2, 2)
    gt_boxes = torch.tensor([[500.0, 500.0, 510.0, 510.0]])
    image = helpers.random_image(12, 1)._replace(gt_boxes=gt_boxes)
    match = helpers.run(anchors, [image], make_matcher())
    assert (match.labels == helpers.NUM_CLASSES).all() and not match.pair_mask.any()


def test_a_low_quality_anchor_belongs_to_the_box_that_it_overlaps_most_itself():
    # The anchor is the best of both boxes, at IoU 1/10 and 4/10.
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 10.0, 4.0]])
    image = helpers.Image(
        anchors.clone(), gt_boxes, torch.tensor([1, 2]), torch.zeros(1, helpers.NUM_CLASSES)
    )
    match = helpers.run(anchors, [image], make_matcher(neg_iou=0.4, pos_iou=0.5))
    assert (match.labels.tolist(), match.pair_gt_idx.tolist()) == ([[2]], [[1]])
    match = helpers.run(
        anchors, [image], make_matcher(neg_iou=0.4, pos_iou=0.5, allow_low_quality=False)
    )
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
