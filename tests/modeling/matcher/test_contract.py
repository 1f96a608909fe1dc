"""What every matcher must keep to, whatever it decides."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from detectron2.layers import ShapeSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolof_d2.modeling import GroundTruth, MatchResult, build_matcher
from yolof_d2.modeling.matcher import (
    MATCHER_REGISTRY,
    ATSSMatcher,
    HungarianMatcher,
    Matcher,
    MaxIoUMatcher,
    SimOTAMatcher,
    TopKIoUMatcher,
    UniformMatcher,
)
from yolof_d2.modeling.matcher.build import IGNORED

from .helpers import NUM_CLASSES, Image, grid_anchors, grids, image_lists, pad, random_image, run

Make = Callable[[int, int], Matcher]  # of anchors per cell, and stride
K = NUM_CLASSES
MATCHERS: dict[str, Make] = {
    "uniform": lambda a, stride: UniformMatcher(num_classes=K),
    "uniform of anchors": lambda a, stride: UniformMatcher(num_classes=K, candidates=["anchors"]),
    "max_iou": lambda a, stride: MaxIoUMatcher(num_classes=K),
    "topk_iou": lambda a, stride: TopKIoUMatcher(num_classes=K),
    "atss": lambda a, stride: ATSSMatcher(num_classes=K, num_anchors=a),
    "hungarian": lambda a, stride: HungarianMatcher(num_classes=K, stride=stride),
    "simota": lambda a, stride: SimOTAMatcher(num_classes=K, stride=stride),
}
every_matcher = pytest.mark.parametrize("make", MATCHERS.values(), ids=MATCHERS.keys())


def counting_pairs(match: MatchResult, n: int) -> list[tuple[int, int]]:
    """Anchor and ground truth of the pairs of image ``n`` that count, in their order."""
    columns = (match.pair_anchor_idx, match.pair_gt_idx)
    pairs = zip(*(column[n][match.pair_mask[n]].tolist() for column in columns), strict=True)
    return list(pairs)


def assert_well_formed(match: MatchResult, ground_truth: GroundTruth, num_anchors: int) -> None:
    num_images, num_gt = ground_truth.valid.shape
    dtypes = [value.dtype for value in vars(match).values()]
    assert dtypes == [torch.int64, torch.int64, torch.int64, torch.bool]
    assert match.labels.shape == (num_images, num_anchors)
    assert ((match.labels >= IGNORED) & (match.labels <= K)).all()
    assert match.pair_anchor_idx.shape == match.pair_gt_idx.shape == match.pair_mask.shape
    assert ((match.pair_anchor_idx >= 0) & (match.pair_anchor_idx < num_anchors)).all()
    assert ((match.pair_gt_idx >= 0) & (match.pair_gt_idx < num_gt)).all()
    for n in range(num_images):
        pairs = counting_pairs(match, n)
        assert all(ground_truth.valid[n, m] for _, m in pairs)
        # Every positive label is that of a pair of this anchor.
        labels = {(r, int(ground_truth.classes[n, m])) for r, m in pairs}
        assert {(r, c) for r, c in enumerate(match.labels[n].tolist()) if 0 <= c < K} <= labels


def assert_equal(one: MatchResult, other: MatchResult) -> None:
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert torch.equal(a, b)


def as_batch(images: list[Image]) -> tuple[Tensor, Tensor]:
    return (
        torch.stack([image.pred_logits for image in images]),
        torch.stack([image.pred_boxes for image in images]),
    )


@st.composite
def batches(draw) -> tuple[Tensor, int, list[Image]]:
    anchors, num_anchors = draw(grids())
    return anchors, num_anchors, draw(image_lists(len(anchors)))


@every_matcher
@settings(deadline=None, max_examples=40)
@given(batch=batches())
def test_an_image_is_matched_as_if_it_were_alone(make, batch):
    anchors, num_anchors, images = batch
    matcher = make(num_anchors, 4)
    together = run(anchors, images, matcher)
    assert_well_formed(together, pad(images), len(anchors))
    for n, image in enumerate(images):
        alone = run(anchors, [image], matcher)
        assert torch.equal(together.labels[n], alone.labels[0])
        assert counting_pairs(together, n) == counting_pairs(alone, 0)


@every_matcher
@settings(deadline=None, max_examples=40)
@given(batch=batches())
def test_padding_changes_nothing_wherever_it_stands_and_whatever_it_holds(make, batch):
    anchors, num_anchors, images = batch
    matcher, truth = make(num_anchors, 4), pad(images)
    size = len(images)
    some_box = torch.tensor([0.0, 0.0, 6.0, 6.0]).expand(size, 1, 4)
    some_class = torch.ones(size, 1, dtype=torch.int64)
    padded = GroundTruth(
        torch.cat((some_box, truth.boxes, some_box, some_box), dim=1),
        torch.cat((some_class, truth.classes, some_class, some_class), dim=1),
        torch.nn.functional.pad(truth.valid, (1, 2)),
    )
    logits, pred_boxes = as_batch(images)
    short = matcher(anchors, logits, pred_boxes, truth)
    long = matcher(anchors, logits, pred_boxes, padded)
    assert_well_formed(long, padded, len(anchors))
    assert torch.equal(short.labels, long.labels)
    for n in range(size):
        assert counting_pairs(short, n) == [(r, m - 1) for r, m in counting_pairs(long, n)]


@every_matcher
@pytest.mark.parametrize("num_gt", [(0,), (0, 0), (0, 3), (3, 0, 1)])
def test_images_without_boxes_have_background_only(make, num_gt):
    anchors = grid_anchors(3, 3)
    images = [
        random_image(len(anchors), num)._replace(gt_boxes=anchors[12 : 12 + num] + 1)
        for num in num_gt
    ]
    match = run(anchors, images, make(3, 32))
    for n, num in enumerate(num_gt):
        assert match.pair_mask[n].any() == (num > 0)
        assert (match.labels[n] == K).all() == (num == 0)


@every_matcher
@pytest.mark.parametrize("deterministic", [False, True])
def test_identical_boxes_are_matched_alike_in_every_call(make, deterministic):
    anchors = grid_anchors(2, 2)
    image = random_image(len(anchors), 6)
    image = image._replace(
        gt_boxes=image.gt_boxes[:1].repeat(6, 1), pred_boxes=image.pred_boxes[:1].repeat(12, 1)
    )
    image.pred_logits.zero_()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        first, second = (run(anchors, [image], make(3, 32)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert_well_formed(first, pad([image]), len(anchors))
    assert_equal(first, second)


@every_matcher
@pytest.mark.parametrize("num_gt", [1, 4])
def test_a_single_anchor_is_enough(make, num_gt):
    anchors = grid_anchors(1, 1, sizes=(32,))
    image = random_image(1, num_gt)
    image = image._replace(gt_boxes=anchors.repeat(num_gt, 1) + 1)
    match = run(anchors, [image], make(1, 32))
    assert_well_formed(match, pad([image]), 1)
    assert match.labels.item() in image.gt_classes


@every_matcher
def test_boxes_of_1_pixel_and_predictions_without_area_are_matched(make):
    anchors = grid_anchors(3, 3)
    image = random_image(len(anchors), 4)
    image.gt_boxes[:, 2:] = image.gt_boxes[:, :2] + 1
    image.pred_boxes[:, 2:] = image.pred_boxes[:, :2]
    assert_well_formed(run(anchors, [image], make(3, 32)), pad([image]), len(anchors))


@every_matcher
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_predictions_that_are_not_finite_do_not_crash(make, value, share):
    anchors = grid_anchors(3, 3)
    image = random_image(len(anchors), 2)
    bad = slice(0, int(len(anchors) * share))
    for changed in (("pred_boxes",), ("pred_logits",), ("pred_boxes", "pred_logits")):
        broken = image._replace(**{name: getattr(image, name).clone() for name in changed})
        for name in changed:
            getattr(broken, name)[bad] = value
        assert_well_formed(run(anchors, [broken], make(3, 32)), pad([broken]), len(anchors))


@every_matcher
def test_autocast_changes_nothing(make):
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=num) for num in (4, 0, 2)]
    plain = run(anchors, images, make(3, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(run(anchors, images, make(3, 32)), plain)


@every_matcher
def test_inputs_are_left_alone_and_no_gradient_graph_is_kept(make):
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=num) for num in (4, 0, 2)]
    truth, (logits, pred_boxes) = pad(images), as_batch(images)
    inputs = (anchors, logits, pred_boxes, *vars(truth).values())
    before = [tensor.clone() for tensor in inputs]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        for tensor in (anchors, logits, pred_boxes, truth.boxes):
            tensor.requires_grad_()
        make(3, 32)(anchors, logits, pred_boxes, truth)
    assert not kept
    assert all(map(torch.equal, inputs, before))


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


@every_matcher
def test_no_temporary_is_larger_than_images_x_boxes_x_anchors(make):
    anchors = grid_anchors(6, 7)
    images = [random_image(len(anchors), 9, seed=seed) for seed in range(5)]
    truth, (logits, pred_boxes) = pad(images), as_batch(images)
    with LargestResult() as largest:
        make(3, 32)(anchors, logits, pred_boxes, truth)
    assert len(anchors) * 9 <= largest.numel <= 5 * 9 * len(anchors)


@pytest.mark.parametrize("make", [make for name, make in MATCHERS.items() if name != "hungarian"])
def test_matching_never_waits_for_the_device(make):
    # Tensors of the meta device have no values: any operation that must look at one, or whose
    # result's shape depends on one, fails; so does a copy to the host.
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=num) for num in (4, 0, 2)]
    ground_truth = pad(images, device="meta")
    pred_boxes = torch.empty(3, len(anchors), 4, device="meta")
    logits = torch.empty(3, len(anchors), K, device="meta")
    match = make(3, 32)(anchors.to("meta"), logits, pred_boxes, ground_truth)
    assert all(value.device.type == "meta" for value in vars(match).values())


# Other than the defaults, for every key of each node.
SETTINGS = {
    UniformMatcher: (
        "UNIFORM",
        {
            "TOPK": 5,
            "CANDIDATES": ["anchors"],
            "POS_IGNORE_IOU": 0.25,
            "NEG_IGNORE_IOU": 0.5,
        },
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


@pytest.mark.parametrize("part", SETTINGS)
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


@pytest.mark.parametrize("part", SETTINGS)
def test_the_defaults_of_the_class_are_those_of_the_config(cfg, part):
    defaults = {
        name.upper(): parameter.default
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.default is not parameter.empty
    }
    node = cfg.MODEL.YOLOF.MATCHER[SETTINGS[part][0]]
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()} == node
