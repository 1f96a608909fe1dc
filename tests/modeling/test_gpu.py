"""Checks that need a GPU; `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from tests.modeling.images import make_image
from yolof_d2.modeling.losses import FocalBoxLoss
from yolof_d2.modeling.matcher import (
    ATSSMatcher,
    GroundTruth,
    MaxIoUMatcher,
    SimOTAMatcher,
    TopKIoUMatcher,
    UniformMatcher,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]


def make_batch() -> list[dict]:
    """Two images; in the first, two objects of different class with the same box."""
    boxes = [(10, 10, 90, 70), (10, 10, 90, 70), (60, 50, 155, 120)]
    return [make_image(128, 160, boxes), make_image(128, 160, seed=1)]


def test_losses_and_gradients_are_those_of_the_cpu(cfg):
    torch.manual_seed(0)
    on_cpu = build_model(cfg).train()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    for model in (on_cpu, on_gpu):
        sum(model(make_batch()).values()).backward()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        if theirs.grad is not None:
            scale = theirs.grad.abs().max()
            close = (ours.grad.cpu() - theirs.grad).abs().max() <= 1e-2 * scale + 1e-4
            assert close, name


@pytest.mark.parametrize("deterministic", [False, True])
def test_identical_boxes_of_two_classes_are_labelled_as_on_the_cpu(deterministic, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    anchors = torch.tensor(
        [[0.0, 0.0, 32.0, 32.0], [16.0, 0.0, 50.0, 30.0], [90.0, 90.0, 99.0, 99.0]]
    )
    boxes = torch.tensor([[2.0, 1.0, 33.0, 31.0]]).repeat(2, 1)
    instances = Instances((100, 100), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    labels = []
    torch.use_deterministic_algorithms(deterministic)
    try:
        for device in ("cpu", "cuda"):
            truth = GroundTruth.from_instances([instances], torch.device(device))
            matcher = UniformMatcher(num_classes=2, topk=2)
            at = anchors.to(device)
            labels.append(
                matcher(at, torch.zeros(1, 3, 2, device=device), at[None], truth).labels.cpu()
            )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*labels) and labels[0].tolist() == [[1, 1, 2]]


@pytest.mark.parametrize(
    "matcher",
    [
        UniformMatcher(num_classes=3),
        MaxIoUMatcher(num_classes=3),
        TopKIoUMatcher(num_classes=3),
        ATSSMatcher(num_classes=3, num_anchors=1),
        SimOTAMatcher(num_classes=3, stride=32),
    ],
    ids=lambda matcher: type(matcher).__name__,
)
@pytest.mark.parametrize("box_loss", ["giou", "iou", "diou", "ciou", "l1"])
def test_matching_and_loss_never_wait_for_the_gpu(matcher, box_loss):
    anchors = torch.rand(50, 4, device="cuda") * 50
    anchors[:, 2:] += anchors[:, :2] + 1
    truth = GroundTruth.from_instances(
        [image["instances"] for image in make_batch()], torch.device("cuda")
    )
    logits = torch.zeros(2, 50, 3, device="cuda", requires_grad=True)
    boxes = anchors.repeat(2, 1, 1).requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        match = matcher(anchors, logits.detach(), boxes.detach(), truth)
        loss = FocalBoxLoss(bbox_reg_loss_type=box_loss)
        sum(loss(anchors, logits, boxes, match, truth).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
