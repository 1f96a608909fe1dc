from __future__ import annotations

import pytest
import torch
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.modeling.matcher.helpers import iou
from yolof_d2.modeling.postprocess import select_detections

OPTIONS = {"score_thresh": 0.05, "topk": 1000, "nms_thresh": 0.6, "max_detections": 100}


def select(logits: Tensor, boxes: Tensor, **options) -> Instances:
    return select_detections(logits, boxes, (60, 80), **{**OPTIONS, **options})


def select_by_loop(logits, boxes, *, score_thresh, topk, nms_thresh, max_detections) -> list[tuple]:
    candidates = []
    # The sigmoid of the whole tensor: that of one row may differ in the last bit.
    for box, box_scores in zip(boxes.tolist(), logits.sigmoid().tolist(), strict=True):
        for k, score in enumerate(box_scores):
            if score > score_thresh:
                candidates.append((score, k, box))
    candidates = sorted(candidates, reverse=True)[:topk]
    kept: list[tuple] = []
    for score, k, box in candidates:
        if all(k != other_k or iou(box, other) <= nms_thresh for _, other_k, other in kept):
            kept.append((score, k, box))
    return kept[:max_detections]


def random_predictions(seed: int, num_boxes: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Boxes of whole pixels, many of them overlapping; all logits are distinct."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (num_boxes, 2), generator=generator).float()
    size = torch.randint(5, 30, (num_boxes, 2), generator=generator).float()
    order = torch.randperm(num_boxes * num_classes, generator=generator).float()
    logits = (order / len(order) * 8 - 6).view(num_boxes, num_classes)
    return logits, torch.cat((corner, corner + size), dim=1)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_boxes=st.integers(1, 30),
    num_classes=st.integers(1, 4),
    score_thresh=st.sampled_from([0.0, 0.05, 0.5]),
    topk=st.sampled_from([1, 5, 1000]),
    nms_thresh=st.sampled_from([0.3001, 0.6001]),  # no IoU equals it: rounding cannot decide
    max_detections=st.sampled_from([1, 4, 100]),
)
def test_agrees_with_a_loop_in_python(seed, num_boxes, num_classes, **options):
    logits, boxes = random_predictions(seed, num_boxes, num_classes)
    found = select(logits, boxes, **options)
    expected = select_by_loop(logits, boxes, **options)
    fields = (found.scores, found.pred_classes, found.pred_boxes.tensor)
    assert list(zip(*(field.tolist() for field in fields), strict=True)) == expected
    assert found.image_size == (60, 80)


FAR_APART = torch.tensor([[30.0 * i, 0.0, 30.0 * i + 10, 10.0] for i in range(4)])


def test_a_score_equal_to_the_threshold_is_dropped():
    found = select(torch.tensor([[0.0], [0.1]]), FAR_APART[:2], score_thresh=0.5)
    assert torch.equal(found.pred_boxes.tensor, FAR_APART[1:2])


def test_nan_scores_are_dropped_and_take_no_candidates_place():
    logits = torch.tensor([[float("nan")], [1.0], [float("nan")], [2.0]])
    found = select(logits, FAR_APART, topk=2)
    assert torch.equal(found.pred_boxes.tensor, FAR_APART[[3, 1]])


@pytest.mark.parametrize("num_boxes", [0, 4])
def test_nothing_above_the_threshold_gives_empty_detections(num_boxes):
    found = select(torch.full((num_boxes, 3), -9.0), FAR_APART[:num_boxes])
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert (found.scores.shape, found.pred_classes.shape) == ((0,), (0,))
    assert (found.scores.dtype, found.pred_classes.dtype) == (torch.float32, torch.int64)
