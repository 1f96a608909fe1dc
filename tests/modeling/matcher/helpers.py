"""Inputs and oracles in plain Python, for the tests of several matchers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.modeling import GroundTruth, MatchResult
from yolof_d2.modeling.matcher import Matcher
from yolof_d2.modeling.matcher.build import IGNORED

NUM_CLASSES = 3
Box = list[float]


class Image(NamedTuple):
    pred_boxes: Tensor  # (R, 4)
    gt_boxes: Tensor  # (M, 4)
    gt_classes: Tensor  # (M,)
    pred_logits: Tensor  # (R, K)


def pad(images: list[Image], device: str = "cpu") -> GroundTruth:
    instances = [
        Instances((64, 64), gt_boxes=Boxes(image.gt_boxes), gt_classes=image.gt_classes)
        for image in images
    ]
    return GroundTruth.from_instances(instances, torch.device(device))


def run(anchors: Tensor, images: list[Image], matcher: Matcher) -> MatchResult:
    pred_boxes = torch.stack([image.pred_boxes for image in images])
    logits = torch.stack([image.pred_logits for image in images])
    return matcher(anchors, logits, pred_boxes, pad(images))


# Inputs


def grid_anchors(
    height: int, width: int, sizes: tuple[float, ...] = (16, 32, 64), stride: float = 32
) -> Tensor:
    y, x, half = torch.meshgrid(
        torch.arange(height) * float(stride),
        torch.arange(width) * float(stride),
        torch.tensor(sizes) / 2,
    )
    return torch.stack((x - half, y - half, x + half, y + half), dim=-1).view(-1, 4)


def random_image(num_anchors: int, num_gt: int, seed: int = 0) -> Image:
    """Multiples of 1/8 pixel: float32 and the oracle's float64 agree on every distance."""
    generator = torch.Generator().manual_seed(seed)

    def random_boxes(num: int) -> Tensor:
        corner, size = (torch.randint(0, 800, (num, 2), generator=generator) / 8 for _ in range(2))
        return torch.cat((corner, corner + size + 1), dim=1)

    classes = torch.randint(0, NUM_CLASSES, (num_gt,), generator=generator)
    boxes, gt_boxes = random_boxes(num_anchors), random_boxes(num_gt)
    logits = torch.randn(num_anchors, NUM_CLASSES, generator=generator) * 2
    return Image(boxes, gt_boxes, classes, logits)


def boxes(num: int, smallest: int) -> st.SearchStrategy[Tensor]:
    """Whole coordinates, so that float32 is exact, and small, so that ties are common."""

    def to_xyxy(array) -> Tensor:
        corner, size = torch.from_numpy(array).float().split(2, dim=1)
        return torch.cat((corner, corner + size + smallest), dim=1)

    return hnp.arrays("int64", (num, 4), elements=st.integers(0, 12)).map(to_xyxy)


@st.composite
def image_lists(draw, num_anchors: int, max_gt: int = 4) -> list[Image]:
    images = []
    for num_gt in draw(st.lists(st.integers(0, max_gt), min_size=1, max_size=3)):
        classes = draw(hnp.arrays("int64", (num_gt,), elements=st.integers(0, NUM_CLASSES - 1)))
        logits = draw(hnp.arrays("int64", (num_anchors, NUM_CLASSES), elements=st.integers(-8, 8)))
        images.append(
            Image(
                draw(boxes(num_anchors, smallest=0)),
                draw(boxes(num_gt, smallest=1)),
                torch.from_numpy(classes),
                torch.from_numpy(logits) / 2,
            )
        )
    return images


@st.composite
def grids(draw, stride: int = 4) -> tuple[Tensor, int]:
    """Anchors of a small map, centres at multiples of ``stride``; and how many a cell has."""
    sizes = tuple(draw(st.lists(st.sampled_from([2.0, 6.0, 11.0]), min_size=1, max_size=3)))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return grid_anchors(height, width, sizes, stride), len(sizes)


# Oracles: plain Python, one image, one box, one anchor at a time.


def iou(a: Box, b: Box, number: Callable[[float], Any] = float) -> Any:
    """IoU; with ``number=Fraction`` it is exact."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = map(number, a), map(number, b)
    intersection = max(number(0), min(ax1, bx1) - max(ax0, bx0)) * max(
        number(0), min(ay1, by1) - max(ay0, by0)
    )
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    return intersection / union if union > 0 else number(0)


def center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def is_inside(point: tuple[float, float], box: Box) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def real_pairs(match: MatchResult, n: int, num_gt: int) -> list[tuple[int, int, bool]]:
    """Anchor, ground truth and mask of the pairs of image ``n``, without those of padding."""
    pairs = (match.pair_anchor_idx, match.pair_gt_idx, match.pair_mask)
    return [p for p in zip(*(column[n].tolist() for column in pairs), strict=True) if p[1] < num_gt]


def assert_ranking_labels(
    image: Image,
    pairs: list[tuple[int, int, bool]],
    neg_ignore_iou: float,
    match: MatchResult,
    n: int,
) -> None:
    """Check labels and padding against the rule of matchers that rank: the last pair decides."""
    preds, gts = image.pred_boxes.tolist(), image.gt_boxes.tolist()
    labels = [NUM_CLASSES] * len(preds)
    for r, box in enumerate(preds):
        if any(iou(box, gt) > neg_ignore_iou for gt in gts):
            labels[r] = IGNORED
    for anchor, gt, counts in pairs:
        labels[anchor] = int(image.gt_classes[gt]) if counts else IGNORED
    assert match.labels[n].tolist() == labels
    assert not match.pair_mask[n][match.pair_gt_idx[n] >= len(gts)].any()


def assert_owners(
    image: Image,
    owners: list[int | None],
    match: MatchResult,
    n: int,
    ignored: tuple[int, ...] = (),
) -> None:
    """Check a match in which anchor r belongs to ground truth ``owners[r]``, or to none."""
    labels = [
        (IGNORED if r in ignored else NUM_CLASSES) if gt is None else int(image.gt_classes[gt])
        for r, gt in enumerate(owners)
    ]
    assert match.labels[n].tolist() == labels
    assert match.pair_anchor_idx[n].tolist() == list(range(len(owners)))
    assert match.pair_mask[n].tolist() == [gt is not None for gt in owners]
    gt_idx = match.pair_gt_idx[n].tolist()
    assert [
        gt if counts else None for gt, counts in zip(gt_idx, match.pair_mask[n], strict=True)
    ] == owners
