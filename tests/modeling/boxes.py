"""Boxes and reference losses for tests of box arithmetic, losses and the box transform."""

from __future__ import annotations

import torch
import torchvision
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import strategies as st

COORDINATE = st.integers(0, 20)
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=6)


def random_boxes(num: int, seed: int = 0, largest: float = 500.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=generator) * largest
    return torch.cat((corner, corner + 1 + torch.rand(num, 2, generator=generator) * largest), 1)


def l1_of_deltas(anchors: torch.Tensor, boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    deltas = (transform.get_deltas(anchors, boxes) for boxes in (boxes1, boxes2))
    return (next(deltas) - next(deltas)).abs().sum(dim=1)


# Losses of other libraries; called with anchors and two lists of boxes, (N, 4) each.
BOX_LOSSES = {
    "giou": lambda _, a, b: torchvision.ops.generalized_box_iou_loss(a, b),
    "iou": lambda _, a, b: 1 - torchvision.ops.box_iou(a, b).diagonal(),
    "diou": lambda _, a, b: torchvision.ops.distance_box_iou_loss(a, b),
    "ciou": lambda _, a, b: torchvision.ops.complete_box_iou_loss(a, b),
    "l1": l1_of_deltas,
}
