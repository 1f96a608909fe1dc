"""Images with boxes, a step of training and uneven weights, for tests of modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

Batch = list[dict[str, Any]]
NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": nn.GroupNorm,
    "FrozenBN": FrozenBatchNorm2d,
}


def make_image(
    height: int, width: int, boxes: Sequence[Sequence[float]] = (), seed: int = 0
) -> dict[str, Any]:
    """Return an image of noise, with boxes (XYXY pixels) of classes 0, 1, 2, 0, ..."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 3
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances}


def train_step(model: nn.Module, batch: Batch, dtype: torch.dtype = torch.float32) -> dict:
    """Return the losses; fail unless they and all gradients are there and finite."""
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    with autocast, EventStorage():
        losses: dict[str, Tensor] = model.train()(batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return losses


def randomise(model: nn.Module) -> None:
    """Give all norms and biases values that matter, from a seed of their own."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            low = 0.5 if name.endswith(("running_var", "weight")) else -0.5
            tensor.uniform_(low, low + 1, generator=generator)
