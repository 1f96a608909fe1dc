"""Rules for every matcher of this package, beyond the checks of the conformance suite."""

from __future__ import annotations

import inspect

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolof_d2.modeling import GroundTruth, build_matcher
from yolof_d2.modeling.matcher import (
    MATCHER_REGISTRY,
    ATSSMatcher,
    HungarianMatcher,
    MaxIoUMatcher,
    SimOTAMatcher,
    TopKIoUMatcher,
    UniformMatcher,
)

from .helpers import grid_anchors, pad, random_image, run

# Other than the defaults, for every key of each node.
SETTINGS = {
    UniformMatcher: (
        "UNIFORM",
        {"TOPK": 5, "CANDIDATES": ["anchors"], "POS_IGNORE_IOU": 0.25, "NEG_IGNORE_IOU": 0.5},
    ),
    MaxIoUMatcher: ("MAX_IOU", {"NEG_IOU": 0.2, "POS_IOU": 0.7, "ALLOW_LOW_QUALITY": False}),
    TopKIoUMatcher: ("TOPK_IOU", {"TOPK": 5, "POS_IGNORE_IOU": 0.25, "NEG_IGNORE_IOU": 0.5}),
    ATSSMatcher: ("ATSS", {"TOPK": 15}),
    HungarianMatcher: ("HUNGARIAN", {"CLS_WEIGHT": 1.0, "L1_WEIGHT": 3.0, "GIOU_WEIGHT": 0.5}),
    SimOTAMatcher: (
        "SIMOTA",
        {"CENTER_RADIUS": 1.5, "CANDIDATE_TOPK": 5, "CLS_WEIGHT": 2.0, "IOU_WEIGHT": 4.0},
    ),
}
each_matcher = pytest.mark.parametrize("part", SETTINGS)


@each_matcher
def test_a_matcher_is_built_by_name_from_every_key_of_its_node(cfg, part):
    node, values = SETTINGS[part]
    assert MATCHER_REGISTRY.get(part.__name__) is part
    assert values.keys() == cfg.MODEL.YOLOF.MATCHER[node].keys()
    cfg.MODEL.YOLOF.MATCHER.NAME = part.__name__
    cfg.MODEL.YOLOF.MATCHER[node].update(values)
    matcher = build_matcher(cfg, ShapeSpec(channels=16, stride=16), 5)
    assert type(matcher) is part
    found = {key: getattr(matcher, key.lower()) for key in values}
    assert found == values
    derived = {"num_classes": 3, "stride": 16, "num_anchors": 5}
    assert vars(matcher).items() >= {
        (name, value) for name, value in derived.items() if hasattr(matcher, name)
    }


@each_matcher
def test_the_defaults_of_the_class_are_those_of_the_config(cfg, part):
    defaults = {
        name.upper(): parameter.default
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.default is not parameter.empty
    }
    node = cfg.MODEL.YOLOF.MATCHER[SETTINGS[part][0]]
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()} == node


class LargestResult(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@each_matcher
def test_no_temporary_is_larger_than_images_x_boxes_x_anchors(cfg, part):
    anchors = grid_anchors(6, 7)
    images = [random_image(len(anchors), 9, seed=seed) for seed in range(5)]
    cfg.MODEL.YOLOF.MATCHER.NAME = part.__name__
    matcher = build_matcher(cfg, ShapeSpec(channels=16, stride=32), 3)
    with LargestResult() as largest:
        run(anchors, images, matcher)
    assert len(anchors) * 9 <= largest.numel <= 5 * 9 * len(anchors)


@each_matcher
def test_padding_may_hold_anything(cfg, part):
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=num) for num in (4, 0, 2)]
    truth, filled = pad(images), pad([random_image(len(anchors), 4, seed=9)] * 3)
    filled = GroundTruth(
        truth.boxes.where(truth.valid[..., None], filled.boxes),
        truth.classes.where(truth.valid, filled.classes),
        truth.valid,
    )
    cfg.MODEL.YOLOF.MATCHER.NAME = part.__name__
    matcher = build_matcher(cfg, ShapeSpec(channels=16, stride=32), 3)
    columns = (torch.stack([getattr(image, name) for image in images])
               for name in ("pred_logits", "pred_boxes"))  # fmt: skip
    inputs = (anchors, *columns)
    one, other = matcher(*inputs, truth), matcher(*inputs, filled)
    assert torch.equal(one.labels, other.labels) and torch.equal(one.pair_mask, other.pair_mask)
    for name in ("pair_anchor_idx", "pair_gt_idx"):
        assert torch.equal(getattr(one, name)[one.pair_mask], getattr(other, name)[one.pair_mask])
