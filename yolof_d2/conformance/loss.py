"""Checks of losses; see :class:`yolof_d2.modeling.DetectionLoss`.

The matches are made here, by no matcher, so that each case that the contract allows occurs: an
anchor of two pairs, a pair that is masked out, an ignored anchor in a pair that counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from yolof_d2.modeling import DetectionLoss, MatchResult, build_loss
from yolof_d2.modeling.matcher.build import IGNORED

from . import scenes
from .expectations import (
    expect,
    expect_finite,
    expect_kind,
    expect_on_meta,
    expect_same,
    expect_unchanged,
    raising_means,
)
from .modules import on_meta_device
from .scenes import Scene

PAIRS_PER_OBJECT = 3  # two that count and one that does not


class LossSubject:
    """Build and run the loss that ``cfg`` selects."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def build(self) -> DetectionLoss:
        return build_loss(self.cfg)

    def losses(self, scene: Scene, match: MatchResult | None = None) -> dict[str, Tensor]:
        """Return the losses of ``scene`` by a new part."""
        match = match or make_match(scene)
        return self.build()(scene.anchors, scene.logits, scene.boxes, match, scene.truth)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield losses and gradients of every scene."""
        for scene in [*scenes.all_scenes(self.cfg), right_answer(scenes.ordinary(self.cfg))]:
            logits = scene.logits.clone().requires_grad_()
            boxes = scene.boxes.clone().requires_grad_()
            match = make_match(scene)
            with raising_means(f"with {scene.title} it failed"):
                losses = self.losses(dataclasses.replace(scene, logits=logits, boxes=boxes), match)
                grads = torch.autograd.grad(_total(losses), [logits, boxes], allow_unused=True)
            values = {name: value.detach() for name, value in losses.items()}
            yield Outcome(scene, match, values, dict(zip(("logits", "boxes"), grads, strict=True)))


class Outcome(NamedTuple):
    """Losses of one scene, and the gradients of their sum by input; None where there is none."""

    scene: Scene
    match: MatchResult
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    def expect_no_gradient(self, name: str, where: Tensor, who: str) -> None:
        """Raise if anchors of a mask (N, R) get a gradient of an input; ``{}`` is their number."""
        gradient = self.gradients[name]
        if gradient is not None:
            count = int((gradient[where] != 0).any(-1).sum())
            expect(not count, f"{who.format(count)} with {self.scene.title}; wanted none")


def make_match(scene: Scene) -> MatchResult:
    """Make a match of ``scene`` as some matcher may give it.

    Object m is paired with anchors 4m, 4m + 1 and, masked out, 4m + 2, modulo their number. Anchor
    4m has the object's class, 4m + 1 is ignored, and so is 4m + 3, of no pair. The rest is
    background.
    """
    num_images, num_gt = scene.truth.valid.shape
    num_anchors = len(scene.anchors)
    labels = torch.full((num_images, num_anchors), scene.num_classes)
    objects = torch.arange(num_gt)
    for n in range(num_images):
        for m in objects[scene.truth.valid[n]].tolist():
            labels[n, (4 * m + 3) % num_anchors] = IGNORED
            labels[n, (4 * m + 1) % num_anchors] = IGNORED
            labels[n, 4 * m % num_anchors] = scene.truth.classes[n, m]
    gt_idx = objects.repeat_interleave(PAIRS_PER_OBJECT).expand(num_images, -1)
    rank = torch.arange(PAIRS_PER_OBJECT).repeat(num_gt)
    anchor_idx = (4 * gt_idx + rank) % num_anchors
    mask = scene.truth.valid.gather(1, gt_idx) & (rank < 2)
    return MatchResult(labels, anchor_idx, gt_idx.contiguous(), mask)


def right_answer(scene: Scene) -> Scene:
    """Return ``scene`` with certain, right logits, and with boxes equal to those of the pairs."""
    match = make_match(scene)
    classes = F.one_hot(match.labels.clamp(min=0), scene.num_classes + 1)[..., : scene.num_classes]
    boxes = scene.boxes.clone()
    for n, p in match.pair_mask.nonzero().tolist():
        boxes[n, match.pair_anchor_idx[n, p]] = scene.truth.boxes[n, match.pair_gt_idx[n, p]]
    return dataclasses.replace(
        scene, title="the right answer as prediction", logits=classes * 12.0 - 6.0, boxes=boxes
    )


def is_a_loss(subject: LossSubject) -> None:
    """It derives from :class:`DetectionLoss`."""
    expect_kind(subject.build(), DetectionLoss)


def losses_are_named_scalars(subject: LossSubject) -> None:
    """A dict of float32 scalars; also without objects, for one anchor, and in other rare cases."""
    for scene in scenes.all_scenes(subject.cfg):
        with raising_means(f"with {scene.title} it failed"):
            losses = subject.losses(scene)
        expect(
            isinstance(losses, dict) and bool(losses) and all(isinstance(k, str) for k in losses),
            f"it returned {type(losses).__name__} {losses!r:.80}; wanted a dict of losses by name",
        )
        for name, value in losses.items():
            got = f"a {type(value).__name__}"
            if isinstance(value, Tensor):
                got = f"{value.dtype} of shape {list(value.shape)}"
            expect(
                isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() == 0,
                f"{name} is {got} with {scene.title}; wanted torch.float32 of shape []",
            )


def losses_are_finite_and_not_negative(subject: LossSubject) -> None:
    """This holds for all finite predictions."""
    for outcome in subject.outcomes():
        expect_finite(outcome.losses, f"with {outcome.scene.title}")
        for name, value in outcome.losses.items():
            got = f"{name} is {float(value):g} with {outcome.scene.title}"
            expect(value >= 0, f"{got}; wanted 0 or more")


def gradients_are_finite(subject: LossSubject) -> None:
    """A finite loss may have an infinite derivative."""
    for outcome in subject.outcomes():
        known = {name: g for name, g in outcome.gradients.items() if g is not None}
        expect_finite(known, f"in their gradient with {outcome.scene.title}")


def logits_and_boxes_are_always_in_the_graph(subject: LossSubject) -> None:
    """Without objects, losses are a zero with a graph; otherwise DistributedDataParallel stops."""
    for outcome in subject.outcomes():
        for name, grad in outcome.gradients.items():
            expect(
                grad is not None,
                f"the {name} get no gradient with {outcome.scene.title}; "
                "wanted one, if only of zeros",
            )


def prefers_the_right_answer(subject: LossSubject) -> None:
    """Right classes cost less than wrong ones, and right boxes less than wrong ones."""
    right = right_answer(scenes.ordinary(subject.cfg))
    best = float(_total(subject.losses(right)))
    for name, wrong in (
        ("logits", dataclasses.replace(right, logits=-right.logits)),
        ("boxes", dataclasses.replace(right, boxes=right.boxes + 40)),
    ):
        worse = float(_total(subject.losses(wrong)))
        expect(
            best < worse,
            f"right {name} cost {best:g}, wrong ones {worse:g}; wanted less for the right ones",
        )


def ignored_anchors_have_no_say_in_classification(subject: LossSubject) -> None:
    """No gradient for the logits of an anchor with label -1."""
    for outcome in subject.outcomes():
        ignored = outcome.match.labels == IGNORED
        who = f"{{}} of {int(ignored.sum())} ignored anchors get a gradient for their logits"
        outcome.expect_no_gradient("logits", ignored, who)


def only_pairs_that_count_train_boxes(subject: LossSubject) -> None:
    """No gradient for the box of an anchor in no pair, or only in pairs masked out."""
    for outcome in subject.outcomes():
        match = outcome.match
        paired = torch.zeros_like(match.labels).scatter_reduce(
            1, match.pair_anchor_idx, match.pair_mask.long(), "amax"
        )
        who = "the boxes of {} anchors that are in no pair, or in masked pairs only, get a gradient"
        outcome.expect_no_gradient("boxes", paired == 0, who)


def padding_changes_nothing(subject: LossSubject) -> None:
    """More padded ground truth and masked pairs leave the losses as they are."""
    scene = scenes.ordinary(subject.cfg)
    match = make_match(scene)
    labels, *pairs = vars(match).values()
    more = MatchResult(labels, *(F.pad(value, (0, 7)) for value in pairs))
    padded, wanted = subject.losses(scene.padded(5), more), subject.losses(scene, match)
    expect_same(padded, wanted, "more padding of ground truth and pairs changes the result", 1e-5)


def loss_is_deterministic(subject: LossSubject) -> None:
    """Two parts built alike give the same losses."""
    scene = scenes.ordinary(subject.cfg)
    first, second = subject.losses(scene), subject.losses(scene)
    expect_same(first, second, "two new parts differ on the same input")


def loss_is_the_same_under_autocast(subject: LossSubject) -> None:
    """Mixed precision is for the network: sums over all anchors need float32."""
    scene = scenes.ordinary(subject.cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = subject.losses(scene)
    expect_same(under_autocast, subject.losses(scene), "the result changes under autocast", 1e-5)


def inputs_are_left_alone(subject: LossSubject) -> None:
    """Nothing is written into tensors that other losses and hooks may read."""
    for scene in scenes.all_scenes(subject.cfg):
        match = make_match(scene)
        inputs = {**scene.tensors(), **{f"match.{k}": v for k, v in vars(match).items()}}
        run = partial(subject.losses, scene, match)
        expect_unchanged(inputs, run, f"with {scene.title}")


def never_waits_for_the_device(subject: LossSubject) -> None:
    """It runs on the meta device, where the host has no values to read. Can be waived."""
    scene = scenes.ordinary(subject.cfg)
    match = MatchResult(*(value.to("meta") for value in vars(make_match(scene)).values()))
    part = subject.build()
    if isinstance(part, nn.Module):
        part.to("meta")
    scene = scene.to("meta")
    logits, boxes = scene.logits.requires_grad_(), scene.boxes.requires_grad_()
    with on_meta_device():
        losses = part(scene.anchors, logits, boxes, match, scene.truth)
        _total(losses).backward()
    expect_on_meta(losses)


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
