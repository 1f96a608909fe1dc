from __future__ import annotations

import copy

import torch

from yolof_d2.benchmark.contender import Contender, Options, make_image
from yolof_d2.config import build_cfg

OPTIONS = Options(size=(64, 96), batch_size=(2, 1), objects=3, boxes=150, warmup=1, iterations=3)


def test_steps_leave_the_weights_as_they_are():
    cfg = build_cfg("configs/quick/synthetic_retinanet.yaml", ["MODEL.DEVICE", "cpu"])
    contender = Contender("a", cfg, OPTIONS)
    before = copy.deepcopy(dict(contender.model.named_parameters()))
    contender.model.train()
    contender.train(lambda _: None)
    for name, parameter in contender.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is not None, name
    assert any(parameter.grad.abs().sum() > 0 for parameter in contender.model.parameters())


def test_images_are_the_same_for_the_same_seed_and_their_boxes_lie_inside():
    first, again, other = (make_image(OPTIONS, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    boxes = first["instances"].gt_boxes.tensor
    assert first["image"].shape == (3, 64, 96) and boxes.shape == (3, 4)
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 15).all()
