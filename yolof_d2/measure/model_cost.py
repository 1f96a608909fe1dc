"""Parameters and multiply-adds of a model, from its config alone."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolof_d2.modeling import build_model
from yolof_d2.modeling.families import family_of_model


def count_parameters(module: nn.Module) -> int:
    """Count parameters, with the scale and shift of frozen batch norms, which are buffers."""
    # By what they hold and not by their class: Detectron2, torchvision and timm have one each.
    buffers = [dict(layer.named_buffers(recurse=False)) for layer in module.modules()]
    frozen = [held for held in buffers if {"weight", "bias", "running_var"} <= held.keys()]
    norms = sum(held["weight"].numel() + held["bias"].numel() for held in frozen)
    return sum(parameter.numel() for parameter in module.parameters()) + norms


def build_meta_model(cfg: CfgNode) -> nn.Module:
    """Build the model of ``cfg``, a module without memory for its weights, in eval mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.PRETRAINED = False
    with torch.device("meta"):
        return build_model(cfg).eval()


def input_size(cfg: CfgNode, model: nn.Module) -> tuple[int, int]:
    """Return height and width in pixels of the largest test image, padded as the model wants it."""
    size = cfg.INPUT.FIXED_SIZE.TEST or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return family_of_model(model).padded_size(model, size)


def count_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Count multiply-adds of the dense part (backbone to predictions) for one image.

    Args:
        model: on the meta device, from :func:`build_meta_model`.
        size: height and width in pixels, padded.

    Raises:
        ConfigError: the model's family does not say what its dense part is.
    """
    image = torch.zeros(1, 3, *size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family_of_model(model).predict(model, image)
    return counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two
