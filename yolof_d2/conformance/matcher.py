"""Checks of matchers; see :class:`yolof_d2.modeling.Matcher`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from yolof_d2.modeling import Matcher, MatchResult, build_matcher
from yolof_d2.modeling.matcher.build import IGNORED

from . import scenes
from .expectations import expect, expect_kind, expect_on_meta, expect_unchanged, raising_means
from .modules import on_meta_device
from .scenes import SHAPE, Scene


class MatcherSubject:
    """Build and run the matcher that ``cfg`` selects."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def build(self, scene: Scene | None = None) -> Matcher:
        """Build for the anchors of ``scene``, by default an ordinary one."""
        scene = scene or scenes.ordinary(self.cfg)
        return build_matcher(scene.cfg, SHAPE, scene.num_anchors)

    def match(self, scene: Scene) -> MatchResult:
        """Match by a new matcher."""
        return call(self.build(scene), scene)

    def matches(self, of: Iterable[Scene] | None = None) -> Iterator[tuple[Scene, MatchResult]]:
        """Match some scenes; by default every one with finite predictions."""
        for scene in scenes.all_scenes(self.cfg) if of is None else of:
            with raising_means(f"with {scene.title} it failed"):
                match = self.match(scene)
            yield scene, match


def call(matcher: Matcher, scene: Scene) -> MatchResult:
    """Match ``scene``, with predictions cut off from the network, as the model does."""
    return matcher(scene.anchors, scene.logits.detach(), scene.boxes.detach(), scene.truth)


def is_a_matcher(subject: MatcherSubject) -> None:
    """It derives from :class:`Matcher`."""
    expect_kind(subject.build(), Matcher)


def result_has_the_documented_types_and_shapes(subject: MatcherSubject) -> None:
    """Labels (N, R) and pairs (N, P); also for one anchor, equal objects and other rare cases."""
    for scene, match in subject.matches():
        expect_kind(match, MatchResult, "it returned")
        num_images, num_anchors = scene.boxes.shape[:2]
        for name, value in vars(match).items():
            dtype = torch.bool if name == "pair_mask" else torch.int64
            got = f"{name} is {value.dtype} with {scene.title}"
            expect(value.dtype == dtype, f"{got}; wanted {dtype}")
            pairs = match.pair_mask.shape[-1]
            wanted = [num_images, num_anchors if name == "labels" else pairs]
            expect(
                list(value.shape) == wanted,
                f"{name} has shape {list(value.shape)} with {scene.title}; wanted {wanted}",
            )


def labels_and_indices_are_in_range(subject: MatcherSubject) -> None:
    """Labels in [-1, K], anchors in [0, R), ground truth in [0, M), also of pairs masked out."""
    for scene, match in subject.matches():
        _expect_in_range(scene, match)


def objects_get_anchors(subject: MatcherSubject) -> None:
    """An image with an object that an anchor covers exactly has a positive anchor and a pair."""
    scene = scenes.ordinary(subject.cfg)
    match = subject.match(scene)
    for n, positives, pairs in _count(scene, match, with_objects=True):
        expect(
            positives > 0 and pairs > 0,
            f"image {n}, with an object exactly on an anchor, has {positives} positive anchors and "
            f"{pairs} pairs; wanted at least one of each",
        )


def images_without_objects_have_no_positives(subject: MatcherSubject) -> None:
    """Their anchors are background, or ignored, and no pair counts."""
    for scene, match in subject.matches():
        for n, positives, pairs in _count(scene, match, with_objects=False):
            expect(
                positives == 0 and pairs == 0,
                f"image {n}, without objects, has {positives} positive anchors and {pairs} pairs "
                f"with {scene.title}; wanted none",
            )


def _count(
    scene: Scene, match: MatchResult, *, with_objects: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield number, positive anchors and pairs of each image with, or without, objects."""
    positive = (match.labels >= 0) & (match.labels < scene.num_classes)
    for n, valid in enumerate(scene.truth.valid):
        if bool(valid.any()) == with_objects:
            yield n, int(positive[n].sum()), int(match.pair_mask[n].sum())


def padding_is_in_no_pair(subject: MatcherSubject) -> None:
    """A pair with padded ground truth is masked out."""
    for scene, match in subject.matches():
        real = scene.truth.valid.gather(1, match.pair_gt_idx)
        count = int((match.pair_mask & ~real).sum())
        expect(
            count == 0,
            f"{count} pairs that count have padding as ground truth with {scene.title}; "
            "wanted pair_mask False there",
        )


def positives_have_the_class_of_an_object_of_their_image(subject: MatcherSubject) -> None:
    """A label in [0, K) is the class of some ground truth of the same image."""
    for scene, match in subject.matches():
        for n in range(len(scene.boxes)):
            labels = set(match.labels[n].tolist()) - {IGNORED, scene.num_classes}
            present = set(scene.truth.classes[n][scene.truth.valid[n]].tolist())
            expect(
                labels <= present,
                f"image {n} has positives of classes {sorted(labels)} with {scene.title}, but "
                f"objects of classes {sorted(present)} only",
            )


def paired_anchors_are_not_background(subject: MatcherSubject) -> None:
    """The box loss and the classification loss must not contradict each other."""
    for scene, match in subject.matches():
        labels = match.labels.gather(1, match.pair_anchor_idx)
        count = int((match.pair_mask & (labels == scene.num_classes)).sum())
        expect(
            count == 0,
            f"{count} pairs that count have an anchor labelled background with {scene.title}; "
            "wanted a class, or -1 for ignored",
        )


def images_do_not_depend_on_their_batch(subject: MatcherSubject) -> None:
    """An image is matched in a batch as it is alone."""
    for scene, match in subject.matches():
        for n in range(len(scene.boxes)):
            who = f"image {n} alone, and in its batch with {scene.title},"
            _expect_same_match(subject.match(scene.alone(n)), 0, match, n, who)


def padding_changes_nothing(subject: MatcherSubject) -> None:
    """More padding of the ground truth leaves labels and counting pairs as they are."""
    for scene, match in subject.matches():
        padded = subject.match(scene.padded(5))
        _expect_same_matches(padded, match, f"with more padding, and with less ({scene.title}),")


def matching_is_deterministic(subject: MatcherSubject) -> None:
    """Two matchers built alike match alike, also with PyTorch's deterministic algorithms."""
    for scene, match in subject.matches():
        again = subject.match(scene)
        _expect_same_matches(again, match, f"in two runs on the same input ({scene.title})")
        was = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            deterministic = subject.match(scene)
        finally:
            torch.use_deterministic_algorithms(was)
        when = f"with deterministic algorithms and without ({scene.title})"
        _expect_same_matches(deterministic, match, when)


def matching_is_the_same_under_autocast(subject: MatcherSubject) -> None:
    """Mixed precision is for the network: a distance in bfloat16 would be off by pixels."""
    for scene, match in subject.matches():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = subject.match(scene)
        when = f"under autocast, and without it ({scene.title}),"
        _expect_same_matches(under_autocast, match, when)


def builds_no_graph(subject: MatcherSubject) -> None:
    """Nothing is kept for a backward pass, even if the predictions have gradients."""
    scene = scenes.ordinary(subject.cfg)
    matcher = subject.build(scene)
    saved: list[Tensor] = []
    logits, boxes = scene.logits.requires_grad_(), scene.boxes.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        matcher(scene.anchors, logits, boxes, scene.truth)
    expect(
        not saved,
        f"{len(saved)} tensors were kept for a backward pass that never comes; "
        "wanted none, as under torch.no_grad()",
    )


def inputs_are_left_alone(subject: MatcherSubject) -> None:
    """Nothing is written into tensors that the loss reads later."""
    for scene in scenes.all_scenes(subject.cfg):
        expect_unchanged(scene.tensors(), partial(subject.match, scene), f"with {scene.title}")


def survives_predictions_that_are_not_finite(subject: MatcherSubject) -> None:
    """Training then stops with the message of the loss. Can be waived."""
    for scene, match in subject.matches(scenes.non_finite_predictions(subject.cfg)):
        _expect_in_range(scene, match)


def never_waits_for_the_device(subject: MatcherSubject) -> None:
    """It runs on the meta device, where the host has no values to read. Can be waived."""
    scene = scenes.ordinary(subject.cfg)
    matcher = subject.build(scene)
    if isinstance(matcher, nn.Module):
        matcher.to("meta")
    with on_meta_device():
        match = call(matcher, scene.to("meta"))
    expect_on_meta(vars(match))


def _expect_in_range(scene: Scene, match: MatchResult) -> None:
    for name, lowest, highest in (
        ("labels", IGNORED, scene.num_classes),
        ("pair_anchor_idx", 0, len(scene.anchors) - 1),
        ("pair_gt_idx", 0, scene.truth.valid.shape[1] - 1),
    ):
        value = getattr(match, name)
        wrong = value[(value < lowest) | (value > highest)].unique().tolist()
        expect(
            not wrong, f"{name} holds {wrong[:5]} with {scene.title}; wanted {lowest} to {highest}"
        )


def _expect_same_matches(a: MatchResult, b: MatchResult, when: str) -> None:
    for n in range(len(b.labels)):
        _expect_same_match(a, n, b, n, f"image {n} {when}")


def _expect_same_match(a: MatchResult, i: int, b: MatchResult, j: int, who: str) -> None:
    labels = int((a.labels[i] != b.labels[j]).sum())
    expect(labels == 0, f"{who} differ in {labels} labels")
    got, wanted = _pairs(a, i), _pairs(b, j)
    expect(
        got == wanted,
        f"{who} differ in the pairs (anchor, ground truth): {len(got)} and {len(wanted)} of them",
    )


def _pairs(match: MatchResult, n: int) -> list[tuple[int, int]]:
    """Return the pairs of image ``n`` that count, sorted."""
    mask = match.pair_mask[n]
    idx = (match.pair_anchor_idx[n][mask].tolist(), match.pair_gt_idx[n][mask].tolist())
    return sorted(zip(*idx, strict=True))
