from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolof_d2.modeling import GroundTruth, MatchResult
from yolof_d2.modeling.matcher import UniformMatcher, match_statistics
from yolof_d2.modeling.matcher.build import IGNORED

from .helpers import NUM_CLASSES, grid_anchors, pad, random_image, run

SIDES = [1.0, 31.0, 32.0, 33.0, 95.0, 96.0, 97.0]  # around the bounds of COCO's sizes


def mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else math.nan


def statistics_by_loop(match: MatchResult, truth: GroundTruth) -> dict[str, float]:
    counts: dict[str, list[int]] = {"": [], "_small": [], "_medium": [], "_large": []}
    num_ignored = num_positive = num_contested = 0
    for n, labels in enumerate(match.labels.tolist()):
        columns = (match.pair_anchor_idx, match.pair_gt_idx, match.pair_mask)
        pairs = {
            (r, m)
            for r, m, is_counting in zip(*(c[n].tolist() for c in columns), strict=True)
            if is_counting
        }
        for m, (x0, y0, x1, y1) in enumerate(truth.boxes[n].tolist()):
            if truth.valid[n, m]:
                area = (x1 - x0) * (y1 - y0)
                size = "_small" if area < 1024 else "_medium" if area < 9216 else "_large"
                for name in ("", size):
                    counts[name].append(sum(gt == m for _, gt in pairs))
        for r, label in enumerate(labels):
            num_ignored += label == IGNORED
            if 0 <= label < NUM_CLASSES:
                num_positive += 1
                num_contested += sum(anchor == r for anchor, _ in pairs) >= 2
    return {
        **{f"positives_per_gt{name}": mean(values) for name, values in counts.items()},
        "ignored_anchor_share": num_ignored / match.labels.numel(),
        "positive_anchor_share": num_positive / match.labels.numel(),
        "contested_anchor_share": num_contested / max(1, num_positive),
    }


@st.composite
def matches(draw) -> tuple[MatchResult, GroundTruth]:
    """Any labels and pairs, also repeated ones; boxes of sizes around COCO's bounds; padding."""
    num_images, num_anchors, num_gt = (draw(st.integers(1, 4)) for _ in range(3))
    num_pairs = draw(st.integers(1, 12))

    def integers(shape: tuple[int, ...], lowest: int, highest: int) -> torch.Tensor:
        elements = st.integers(lowest, highest)
        return torch.from_numpy(draw(hnp.arrays("int64", shape, elements=elements)))

    valid = integers((num_images, num_gt), 0, 1).bool()
    corners = torch.tensor(SIDES)[integers((num_images, num_gt, 2), 0, len(SIDES) - 1)]
    boxes = torch.cat((torch.zeros_like(corners), corners), dim=2) * valid[..., None]
    truth = GroundTruth(boxes, integers((num_images, num_gt), 0, 2) * valid, valid)
    pairs = (num_images, num_pairs)
    gt_idx = integers(pairs, 0, num_gt - 1)
    match = MatchResult(
        labels=integers((num_images, num_anchors), IGNORED, NUM_CLASSES),
        pair_anchor_idx=integers(pairs, 0, num_anchors - 1),
        pair_gt_idx=gt_idx,
        pair_mask=integers(pairs, 0, 1).bool() & valid.gather(1, gt_idx),
    )
    return match, truth


@settings(deadline=None, max_examples=200)
@given(matches())
def test_agrees_with_a_loop_in_python(batch):
    match, truth = batch
    found = match_statistics(match, truth, NUM_CLASSES)
    assert {(value.shape, value.dtype) for value in found.values()} == {((), torch.float32)}
    expected = statistics_by_loop(match, truth)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, nan_ok=True)


def test_without_boxes_there_is_no_mean_and_nothing_is_positive():
    anchors = grid_anchors(2, 2)
    images = [random_image(12, 0), random_image(12, 0)]
    match = run(anchors, images, UniformMatcher(num_classes=NUM_CLASSES))
    found = match_statistics(match, pad(images), NUM_CLASSES)
    for name, value in found.items():
        assert value.isnan() if name.startswith("positives") else value == 0


def test_statistics_never_wait_for_the_device():
    # Tensors of the meta device have no values: looking at one fails.
    match = MatchResult(
        labels=torch.zeros(2, 6, dtype=torch.int64, device="meta"),
        pair_anchor_idx=torch.zeros(2, 5, dtype=torch.int64, device="meta"),
        pair_gt_idx=torch.zeros(2, 5, dtype=torch.int64, device="meta"),
        pair_mask=torch.zeros(2, 5, dtype=torch.bool, device="meta"),
    )
    found = match_statistics(match, pad([random_image(6, 3)] * 2, device="meta"), NUM_CLASSES)
    assert all(value.device.type == "meta" for value in found.values())
