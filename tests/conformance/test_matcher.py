from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from tests.conformance.slots import NoPart, SlotTests, breaks
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


calls = breaks(Sound, "__call__")
distance = breaks(Sound, "distance")


def first(action: Callable[..., object]) -> type:
    """A matcher that does something with anchors, logits, boxes and truth before it matches."""

    def call(self, sound, *inputs):
        action(*inputs)
        return sound(*inputs)

    return calls(call)


def fields(corrupt: Callable[..., dict[str, Tensor]]) -> type:
    """A matcher that replaces fields of its result; called with it, predictions and truth."""

    def call(self, sound, anchors, pred_logits, pred_boxes, ground_truth):
        match = sound(anchors, pred_logits, pred_boxes, ground_truth)
        return dataclasses.replace(match, **corrupt(match, pred_boxes, ground_truth))

    return calls(call)


def labels(change: Callable[..., Tensor]) -> type:
    return fields(lambda match, boxes, truth: {"labels": change(match.labels)})


def mask(change: Callable[..., Tensor]) -> type:
    return fields(lambda match, *_: {"pair_mask": change(match.pair_mask)})


def keeps_a_positive(match, boxes, truth):
    labels = match.labels.clone()
    labels[:, 0] = truth.classes[:, 0]
    return {"labels": labels}


def counts_padding(match, boxes, truth):
    some = truth.valid.any(dim=1, keepdim=True)  # not where nothing is: only beside it
    return {"pair_mask": some.expand_as(match.pair_mask)}


def drops_the_largest(match, boxes, truth):
    size = truth.boxes[..., 2] - truth.boxes[..., 0]
    return {"pair_mask": match.pair_mask & (size < size.amax())}


def drops_the_last_slot(mask):
    mask = mask.clone()
    mask[:, 1:] &= torch.arange(1, mask.shape[1]) < mask.shape[1] - 1
    return mask


def refuses_nan(anchors, logits, boxes, truth):
    if not boxes.isfinite().all():
        raise ValueError("matrix contains invalid numeric entries")


def refuses_minus_infinity(anchors, logits, boxes, truth):
    if logits.isneginf().any():
        raise ValueError("no logit may be -inf")


def counts_with_nan(match, boxes, truth):
    finite = boxes.isfinite().all(dim=-1).gather(1, match.pair_anchor_idx)
    return {"pair_anchor_idx": match.pair_anchor_idx.masked_fill(~finite, 2**40)}


def has_classes_of_nan(match, boxes, truth):
    return {"labels": match.labels.masked_fill(boxes.isnan().all(dim=-1), 80)}


def measures_by_matmul(self, sound, boxes, anchors):
    squares = boxes.square().sum(-1)[..., None] + anchors.square().sum(-1)
    return squares - 2 * boxes @ anchors.T


def depends_on_the_mode(mask):
    return mask & torch.tensor(not torch.are_deterministic_algorithms_enabled())


class TestMatcher(SlotTests):
    slot = "matcher"
    sound = [Sound]
    broken = {
        "is_a_matcher": {"it is a NoPart; wanted a Matcher": NoPart},
        "result_has_the_documented_types_and_shapes": {
            "returned a tuple; wanted a MatchResult": calls(
                lambda _, sound, *inputs: tuple(vars(sound(*inputs)).values())
            ),
            "labels is torch.int32 with an ordinary batch; wanted torch.int64": labels(
                lambda labels: labels.int()
            ),
            "pair_mask is torch.float32": mask(lambda mask: mask.float()),
            "labels has shape [3, 144, 1] with an ordinary batch; wanted [3, 144]": labels(
                lambda labels: labels[..., None]
            ),
            "pair_gt_idx has shape [3, 6]": fields(
                lambda match, *_: {"pair_gt_idx": match.pair_gt_idx.repeat(1, 2)}
            ),
            "with more objects than anchors it failed: RuntimeError": first(
                lambda anchors, *_: anchors[:, 0].topk(9)
            ),
            "with no object in the batch it failed": first(
                lambda anchors, logits, boxes, truth: truth.boxes[truth.valid].amax()
            ),
        },
        "labels_and_indices_are_in_range": {
            "labels holds [80] with an ordinary batch; wanted -1 to 3": labels(
                lambda labels: labels.masked_fill(labels == 3, 80)
            ),
            "pair_anchor_idx holds [144]": fields(
                lambda match, boxes, truth: {
                    "pair_anchor_idx": match.pair_anchor_idx.masked_fill(
                        ~match.pair_mask, boxes.shape[1]
                    )
                }
            ),
            "pair_gt_idx holds [-1]": fields(
                lambda match, *_: {
                    "pair_gt_idx": match.pair_gt_idx.masked_fill(~match.pair_mask, -1)
                }
            ),
        },
        "objects_get_anchors": {
            "has 0 positive anchors and 0 pairs": fields(
                lambda match, *_: {
                    "labels": torch.full_like(match.labels, 3),
                    "pair_mask": match.pair_mask & False,
                }
            ),
            "positive anchors and 0 pairs": mask(lambda mask: mask & False),
        },
        "images_without_objects_have_no_positives": {
            "image 1, without objects, has 1 positive anchors and 0 pairs": fields(keeps_a_positive)
        },
        "padding_is_in_no_pair": {"2 pairs that count have padding": fields(counts_padding)},
        "positives_have_the_class_of_an_object_of_their_image": {
            "has positives of classes": labels(lambda x: ((x + 1) % 3).where(x < 3, x))
        },
        "paired_anchors_are_not_background": {
            "have an anchor labelled background with an ordinary batch; wanted a class": fields(
                lambda match, *_: {"pair_anchor_idx": 0 * match.pair_anchor_idx}
            )
        },
        "images_do_not_depend_on_their_batch": {
            "in its batch with an ordinary batch, differ in the pairs": fields(drops_the_largest)
        },
        "padding_changes_nothing": {
            "with less (an ordinary batch), diff": mask(drops_the_last_slot)
        },
        "matching_is_deterministic": {
            "in two runs on the same input": mask(lambda m: m & (torch.rand(m.shape) < 0.5)),
            "with deterministic algorithms and without": mask(depends_on_the_mode),
        },
        "matching_is_the_same_under_autocast": {
            "under autocast, and": distance(measures_by_matmul)
        },
        "builds_no_graph": {
            "1 tensors were kept for a backward pass": first(
                lambda anchors, logits, boxes, truth: boxes.square().sum()
            )
        },
        "inputs_are_left_alone": {
            "ground_truth.boxes was changed in place with an ordinary batch": first(
                lambda anchors, logits, boxes, truth: truth.boxes.clamp_(max=100)
            ),
            "pred_logits was changed in place": first(lambda _, logits, *rest: logits.sigmoid_()),
        },
        "survives_predictions_that_are_not_finite": {
            "that are nan it failed: ValueError: matrix contains": first(refuses_nan),
            "logits that are -inf it failed: ValueError: no": first(refuses_minus_infinity),
            "holds [1099511627776] with": fields(counts_with_nan),
            "labels holds [80] with": fields(has_classes_of_nan),
        },
        "never_waits_for_the_device": {
            "it reads a value on the host": first(
                lambda anchors, logits, boxes, truth: truth.boxes[truth.valid]
            ),
            "labels is on cpu": labels(lambda labels: torch.zeros(labels.shape, dtype=torch.int64)),
        },
    }
