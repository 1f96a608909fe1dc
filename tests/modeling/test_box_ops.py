from __future__ import annotations

import torch
import torchvision
from hypothesis import given, settings

from tests.modeling.boxes import BOXES, random_boxes
from yolof_d2.modeling.box_ops import box_area, box_iou, xyxy_to_cxcywh


@settings(deadline=None)
@given(BOXES, BOXES)
def test_iou_is_torchvisions(first, second):
    # Given as x, y, width, height: some have no area.
    a, b = (
        torch.tensor([(x, y, x + w, y + h) for x, y, w, h in s]).float() for s in (first, second)
    )
    expected = torchvision.ops.box_iou(a, b).nan_to_num(0)  # two boxes without area
    torch.testing.assert_close(box_iou(a[:, None], b), expected)


def test_iou_broadcasts_and_leaves_its_inputs_alone():
    a, b = random_boxes(6).view(2, 3, 4), random_boxes(5, seed=1)
    before = a.clone(), b.clone()
    overlap = box_iou(a[:, :, None], b)
    assert overlap.shape == (2, 3, 5)
    assert overlap[1, 2, 4] == box_iou(a[1, 2], b[4])
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_boxes_without_area_have_iou_zero():
    point = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert box_iou(point, point) == 0
    assert box_iou(point, torch.tensor([0.0, 0.0, 9.0, 9.0])) == 0


def test_centre_size_and_area():
    box = torch.tensor([[[10.0, 20.0, 14.0, 50.0]]])
    assert xyxy_to_cxcywh(box).tolist() == [[[12.0, 35.0, 4.0, 30.0]]]
    assert box_area(box).tolist() == [[120.0]]
