from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.modeling.boxes import BOX_LOSSES, BOXES, random_boxes
from yolof_d2.modeling.box_losses import (
    complete_iou_loss,
    delta_l1_loss,
    distance_iou_loss,
    generalized_iou_loss,
    iou_loss,
)
from yolof_d2.modeling.box_ops import xyxy_to_cxcywh
from yolof_d2.modeling.box_regression import CenterClampedBox2BoxTransform

IOU_LOSSES = {
    iou_loss: "iou",
    generalized_iou_loss: "giou",
    distance_iou_loss: "diou",
    complete_iou_loss: "ciou",
}


@settings(deadline=None)
@given(BOXES, BOXES, st.sampled_from(list(IOU_LOSSES)))
def test_iou_losses_and_their_gradients_are_torchvisions(first, second, loss_of):
    a, b = (
        torch.tensor([(x, y, x + w + 1, y + h + 1) for x, y, w, h in s]).double()
        for s in (first, second)
    )
    num = min(len(a), len(b))
    ours, theirs = (a[:num].clone().requires_grad_() for _ in range(2))
    loss = loss_of(ours, b[:num])
    expected = BOX_LOSSES[IOU_LOSSES[loss_of]](None, theirs, b[:num])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    # Where boxes only touch, either one-sided derivative is right.
    touching = torch.minimum(a[:num, 2:], b[:num, 2:]) == torch.maximum(a[:num, :2], b[:num, :2])
    touching |= (a[:num] == b[:num]).view(num, 2, 2).any(dim=1)
    smooth = ~touching.any(dim=1)
    torch.testing.assert_close(ours.grad[smooth], theirs.grad[smooth], rtol=1e-6, atol=1e-6)


# IoU 4/12; hull 4 x 4; centres (2, 1) and (3, 2); aspect ratios 2 and 1/2.
FIRST, SECOND = torch.tensor([[0.0, 0.0, 4.0, 2.0], [2.0, 0.0, 4.0, 4.0]])


@settings(deadline=None)
@given(BOXES, BOXES, BOXES)
def test_delta_l1_loss_and_its_gradient_are_those_of_detectron2s_deltas(first, second, third):
    lists = first, second, third
    num = min(map(len, lists))
    anchors, a, b = (
        torch.tensor([(x, y, x + w + 1, y + h + 1) for x, y, w, h in s[:num]]).double()
        for s in lists
    )
    ours, theirs = (a.clone().requires_grad_() for _ in range(2))
    loss = delta_l1_loss(anchors, ours, b)
    expected = BOX_LOSSES["l1"](anchors, theirs, b)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    # Where a delta is right already, rounding decides on which side of the corner it lies.
    smooth = (xyxy_to_cxcywh(a) != xyxy_to_cxcywh(b)).all(dim=1)
    torch.testing.assert_close(ours.grad[smooth], theirs.grad[smooth])


def test_delta_l1_loss_has_no_gradient_where_decoding_clamped():
    transform = CenterClampedBox2BoxTransform((1.0, 1.0, 1.0, 1.0), center_clamp=32)
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    # dx beyond half a width, dh beyond what Detectron2 decodes.
    deltas = torch.tensor([[0.6, 0.4, 0.1, 9.0]], requires_grad=True)
    boxes = transform.apply_deltas(deltas, anchors)
    delta_l1_loss(anchors, boxes, anchors).sum().backward()
    torch.testing.assert_close(deltas.grad, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


LOSSES = [*IOU_LOSSES, lambda a, b: delta_l1_loss(FIRST, a, b)]


@pytest.mark.parametrize("loss_of", LOSSES)
def test_losses_broadcast(loss_of):
    a, b = random_boxes(6).view(2, 3, 4), random_boxes(5, seed=1)
    values = loss_of(a[:, :, None], b)
    assert values.shape == (2, 3, 5)
    torch.testing.assert_close(values[1, 2, 4], loss_of(a[1, 2], b[4]))


@pytest.mark.parametrize("loss_of", LOSSES)
def test_losses_of_boxes_without_area_are_finite(loss_of):
    flat = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 9.0], [900.0, 5.0, 905.0, 5.0], [5.0, 5.0, 6.0, 6.0]]
    )
    boxes = flat[:, None].repeat(1, 4, 1).requires_grad_()
    values = loss_of(boxes, flat)
    values.sum().backward()
    assert values.isfinite().all() and boxes.grad.isfinite().all()
    assert (values >= -1e-6).all()


def test_delta_l1_loss_of_an_anchor_without_area_is_finite():
    boxes = FIRST.clone().requires_grad_()
    loss = delta_l1_loss(torch.zeros(4), boxes, SECOND)
    loss.backward()
    assert loss.isfinite() and boxes.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss_of", "still_learns"), list(zip(LOSSES, [False, True, True, True, True], strict=True))
)
def test_which_losses_pull_boxes_together_that_do_not_meet(loss_of, still_learns):
    boxes = torch.tensor([0.0, 0.0, 4.0, 4.0], requires_grad=True)
    loss_of(boxes, torch.tensor([10.0, 0.0, 14.0, 4.0])).backward()
    left, _, right, _ = boxes.grad.tolist()
    assert (left + right < 0) == still_learns  # a step against the gradient moves it right
