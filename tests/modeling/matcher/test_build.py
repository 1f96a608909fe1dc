from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from yolof_d2.modeling import GroundTruth

CPU = torch.device("cpu")


def instances(*rows: tuple[float, float, float, float, int]) -> Instances:
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    classes = torch.tensor([row[4] for row in rows], dtype=torch.int64)
    return Instances((90, 90), gt_boxes=Boxes(boxes), gt_classes=classes)


def test_ground_truth_is_padded_to_the_longest_image():
    batch = [instances((1, 2, 3, 4, 7)), instances(), instances((5, 6, 7, 8, 0), (0, 1, 2, 9, 2))]
    padded = GroundTruth.from_instances(batch, CPU)
    assert padded.valid.tolist() == [[True, False], [False, False], [True, True]]
    assert padded.boxes[0].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0]]
    assert padded.boxes[2].tolist() == [[5, 6, 7, 8], [0, 1, 2, 9]]
    assert padded.classes.tolist() == [[7, 0], [0, 0], [0, 2]]
    assert (padded.boxes.dtype, padded.classes.dtype) == (torch.float32, torch.int64)


def test_a_batch_without_boxes_keeps_one_padded_slot():
    padded = GroundTruth.from_instances([instances(), instances()], CPU)
    assert padded.boxes.shape == (2, 1, 4)
    assert not padded.valid.any()
