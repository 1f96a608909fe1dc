from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from tests.conformance.slots import SlotTests, breaks
from yolof_d2.modeling import Matcher, MatchResult


class Sound(Matcher):
    """The nearest anchor for each object."""

    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        self.num_classes = cfg.MODEL.YOLOF.NUM_CLASSES

    @torch.no_grad()
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth) -> MatchResult:
        num_images, num_anchors = pred_boxes.shape[:2]
        valid = ground_truth.valid
        anchor_idx = self.distance(ground_truth.boxes, anchors).argmin(dim=2)  # (N, M)
        gt_idx = torch.arange(valid.shape[1], device=valid.device).expand(num_images, -1)
        labels = anchor_idx.new_full((num_images, num_anchors + 1), self.num_classes)
        written = torch.where(valid, anchor_idx, num_anchors)  # padding: past the last anchor
        labels = labels.scatter(1, written, ground_truth.classes)[:, :-1]
        return MatchResult(labels, anchor_idx, gt_idx, valid)

    def distance(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return torch.cdist(boxes, anchors.expand(len(boxes), -1, -1), p=1)


class NoMatcher:
    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        pass


calls = breaks(Sound, "__call__")
distance = breaks(Sound, "distance")


def first(action: Callable[..., object]) -> type:
    """A matcher that does something with anchors, logits, boxes and truth before it matches."""

    def call(self, sound, *inputs):
        action(**dict(zip(("anchors", "logits", "boxes", "truth"), inputs, strict=True)))
        return sound(*inputs)

    return calls(call)


def fields(**changes: Callable[..., Tensor]) -> type:
    """A matcher with other fields in its result; each is made of that, of predictions and truth."""

    def call(self, sound, anchors, logits, boxes, truth):
        match = sound(anchors, logits, boxes, truth)
        made = {name: change(match, boxes, truth) for name, change in changes.items()}
        return dataclasses.replace(match, **made)

    return calls(call)


def keeps_a_positive(match, boxes, truth):
    labels = match.labels.clone()
    labels[:, 0] = truth.classes[:, 0]
    return labels


def counts_padding(match, boxes, truth):
    some = truth.valid.any(dim=1, keepdim=True)  # not where nothing is: only beside it
    return some.expand_as(match.pair_mask)


def drops_the_largest_of_the_batch(match, boxes, truth):
    size = truth.boxes[..., 2] - truth.boxes[..., 0]
    return match.pair_mask & (size < size.amax())


def drops_the_last_slot(match, *_):
    mask = match.pair_mask.clone()
    mask[:, 1:] &= torch.arange(1, mask.shape[1]) < mask.shape[1] - 1
    return mask


def refuses_nan(boxes, **_):
    if not boxes.isfinite().all():
        raise ValueError("matrix contains invalid numeric entries")


def refuses_minus_infinity(logits, **_):
    if logits.isneginf().any():
        raise ValueError("no logit may be -inf")


def counts_with_nan(match, boxes, truth):
    finite = boxes.isfinite().all(dim=-1).gather(1, match.pair_anchor_idx)
    return match.pair_anchor_idx.masked_fill(~finite, 2**40)


def has_classes_of_nan(match, boxes, truth):
    return match.labels.masked_fill(boxes.isnan().all(dim=-1), 80)


def measures_by_matmul(self, sound, boxes, anchors):
    squares = boxes.square().sum(-1)[..., None] + anchors.square().sum(-1)
    return squares - 2 * boxes @ anchors.T


def depends_on_the_mode(match, *_):
    return match.pair_mask & torch.tensor(not torch.are_deterministic_algorithms_enabled())


class TestMatcher(SlotTests):
    slot = "matcher"
    sound = [Sound]
    broken = {
        "is_a_matcher": {"it is a NoMatcher; wanted a Matcher": NoMatcher},
        "result_has_the_documented_types_and_shapes": {
            "returned a list; wanted a MatchResult": calls(
                lambda self, sound, *inputs: [*vars(sound(*inputs)).values()]
            ),
            "labels is torch.int32 with an ordinary batch; wanted torch.int64": fields(
                labels=lambda m, *_: m.labels.int()
            ),
            "pair_mask is torch.float32": fields(pair_mask=lambda m, *_: m.pair_mask.float()),
            "labels has shape [3, 144, 1] with an ordinary batch; wanted [3, 144]": fields(
                labels=lambda m, *_: m.labels[..., None]
            ),
            "pair_gt_idx has shape [3, 6]": fields(
                pair_gt_idx=lambda m, *_: m.pair_gt_idx.repeat(1, 2)
            ),
            "with more objects than anchors it failed: RuntimeError": first(
                lambda anchors, **_: anchors[:, 0].topk(9)
            ),
            "with no object in the batch it failed": first(
                lambda truth, **_: truth.boxes[truth.valid].amax()
            ),
        },
        "labels_and_indices_are_in_range": {
            "labels holds [80] with an ordinary batch; wanted -1 to 3": fields(
                labels=lambda m, *_: m.labels.masked_fill(m.labels == 3, 80)
            ),
            "pair_anchor_idx holds [144]": fields(
                pair_anchor_idx=lambda m, *_: m.pair_anchor_idx.masked_fill(~m.pair_mask, 144)
            ),
            "pair_gt_idx holds [-1]": fields(
                pair_gt_idx=lambda m, *_: m.pair_gt_idx.masked_fill(~m.pair_mask, -1)
            ),
        },
        "objects_get_anchors": {
            "has 0 positive anchors and 0 pairs": fields(
                labels=lambda m, *_: m.labels * 0 + 3, pair_mask=lambda m, *_: m.pair_mask & False
            ),
            "positive anchors and 0 pairs": fields(pair_mask=lambda m, *_: m.pair_mask & False),
        },
        "images_without_objects_have_no_positives": {
            "image 1, without objects, has 1 positive anchors and 0 pairs": fields(
                labels=keeps_a_positive
            )
        },
        "padding_is_in_no_pair": {
            "2 pairs that count have padding": fields(pair_mask=counts_padding)
        },
        "positives_have_the_class_of_an_object_of_their_image": {
            "has positives of classes": fields(
                labels=lambda m, *_: ((m.labels + 1) % 3).where(m.labels < 3, m.labels)
            )
        },
        "paired_anchors_are_not_background": {
            "have an anchor labelled background with an ordinary batch; wanted a class": fields(
                pair_anchor_idx=lambda m, *_: 0 * m.pair_anchor_idx
            )
        },
        "images_do_not_depend_on_their_batch": {
            "in its batch with an ordinary batch, differ in the pairs": fields(
                pair_mask=drops_the_largest_of_the_batch
            )
        },
        "padding_changes_nothing": {
            "with less (an ordinary batch), diff": fields(pair_mask=drops_the_last_slot)
        },
        "matching_is_deterministic": {
            "in two runs on the same input": fields(
                pair_mask=lambda m, *_: m.pair_mask & (torch.rand(m.pair_mask.shape) < 0.5)
            ),
            "with deterministic algorithms and without": fields(pair_mask=depends_on_the_mode),
        },
        "matching_is_the_same_under_autocast": {
            "under autocast, and": distance(measures_by_matmul)
        },
        "builds_no_graph": {
            "1 tensors were kept for a backward pass": first(
                lambda boxes, **_: boxes.square().sum()
            )
        },
        "inputs_are_left_alone": {
            "ground_truth.boxes was changed in place with an ordinary batch": first(
                lambda truth, **_: truth.boxes.clamp_(max=100)
            ),
            "pred_logits was changed in place": first(lambda logits, **_: logits.sigmoid_()),
        },
        "survives_predictions_that_are_not_finite": {
            "that are nan it failed: ValueError: matrix contains": first(refuses_nan),
            "logits that are -inf it failed: ValueError: no": first(refuses_minus_infinity),
            "holds [1099511627776] with": fields(pair_anchor_idx=counts_with_nan),
            "labels holds [80] with": fields(labels=has_classes_of_nan),
        },
        "never_waits_for_the_device": {
            "it reads a value on the host": first(lambda truth, **_: truth.boxes[truth.valid]),
            "labels is on cpu": fields(
                labels=lambda m, *_: torch.zeros(m.labels.shape, dtype=torch.int64)
            ),
        },
    }
