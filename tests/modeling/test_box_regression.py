from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from tests.modeling.boxes import random_boxes
from yolof_d2.modeling.box_ops import xyxy_to_cxcywh
from yolof_d2.modeling.box_regression import CenterClampedBox2BoxTransform

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 5.0, 4.0, 2.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_where_the_clamp_does_not_bite_it_is_detectron2s_transform(weights):
    deltas, boxes = torch.randn(50, 4), random_boxes(50)
    ours = CenterClampedBox2BoxTransform(weights, center_clamp=1e6)
    theirs = Box2BoxTransform(weights)
    assert torch.equal(ours.apply_deltas(deltas, boxes), theirs.apply_deltas(deltas, boxes))
    target = random_boxes(50, seed=1)
    assert torch.equal(ours.get_deltas(boxes, target), theirs.get_deltas(boxes, target))


def decode_by_loop(deltas, boxes, weights, center_clamp) -> list[list[float]]:
    decoded = []
    for (dx, dy, dw, dh), (x0, y0, x1, y1) in zip(deltas, boxes, strict=True):
        wx, wy, ww, wh = weights
        width, height = x1 - x0, y1 - y0
        shift_x = min(max(dx / wx * width, -center_clamp), center_clamp)
        shift_y = min(max(dy / wy * height, -center_clamp), center_clamp)
        x, y = (x0 + x1) / 2 + shift_x, (y0 + y1) / 2 + shift_y
        width *= math.exp(min(dw / ww, math.log(1000 / 16)))
        height *= math.exp(min(dh / wh, math.log(1000 / 16)))
        decoded.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return decoded


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("center_clamp", [0, 2.5, 32])
def test_decoding_agrees_with_a_loop_in_float64(weights, center_clamp):
    deltas, boxes = torch.randn(200, 4) * torch.tensor(weights), random_boxes(200)
    transform = CenterClampedBox2BoxTransform(weights, center_clamp=center_clamp)
    decoded = transform.apply_deltas(deltas, boxes)
    expected = decode_by_loop(deltas.tolist(), boxes.tolist(), weights, center_clamp)
    torch.testing.assert_close(decoded, torch.tensor(expected), rtol=1e-5, atol=1e-3)
    moved = (xyxy_to_cxcywh(decoded) - xyxy_to_cxcywh(boxes))[:, :2].abs()
    assert moved.max() == pytest.approx(center_clamp, abs=1e-2)  # it does bite


@pytest.mark.parametrize("size", [100.0, 1e6])
def test_extreme_deltas_give_finite_boxes(size):
    deltas = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * 4).requires_grad_()
    transform = CenterClampedBox2BoxTransform((1.0, 1.0, 1.0, 1.0), center_clamp=32)
    boxes = transform.apply_deltas(deltas, random_boxes(81))
    assert boxes.isfinite().all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    boxes.sum().backward()
    assert deltas.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_deltas_are_decoded_in_float32(dtype):
    transform = CenterClampedBox2BoxTransform((1.0, 1.0, 1.0, 1.0), center_clamp=32)
    deltas, boxes = torch.randn(20, 4).to(dtype), random_boxes(20, largest=2000)
    decoded = transform.apply_deltas(deltas, boxes)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, transform.apply_deltas(deltas.float(), boxes))
