"""A small YOLOF, and checkpoints of it and of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from yolof_d2.config import build_cfg
from yolof_d2.convert.__main__ import main

Weights = dict[str, Tensor]

STEM, WIDTH, OUT = 4, 4, 8  # of the small ResNet-50
CHANNELS, MID, ANCHORS, CLASSES = 16, 8, 5, 3
DILATIONS = (1, 2)
SMALL_YOLOF = f"""
MODEL:
  DEVICE: cpu
  META_ARCHITECTURE: YOLOF
  BACKBONE: {{NAME: build_resnet_backbone}}
  RESNETS:
    OUT_FEATURES: [res5]
    STEM_OUT_CHANNELS: {STEM}
    WIDTH_PER_GROUP: {WIDTH}
    RES2_OUT_CHANNELS: {OUT}
  ANCHOR_GENERATOR: {{SIZES: [[32, 64, 128, 256, 512]], ASPECT_RATIOS: [[1.0]]}}
  YOLOF:
    NUM_CLASSES: {CLASSES}
    ENCODER:
      DILATED: {{NUM_CHANNELS: {CHANNELS}, MID_CHANNELS: {MID}, DILATIONS: {list(DILATIONS)}}}
"""


def small_yolof(*overrides: str) -> nn.Module:
    cfg = build_cfg("", overrides)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL_YOLOF)))
    return build_model(cfg).eval()


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def convert(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def refused(*words: object) -> bool:
    return main([str(word) for word in words]) == 1


def equal(first: Weights, second: Weights) -> bool:
    same = (torch.equal(tensor, second[name]) for name, tensor in first.items())
    return first.keys() == second.keys() and all(same)


def backbone_counters(weights: Weights) -> set[str]:
    """Names in an mmdet file that a frozen norm here has no place for."""
    return {n for n in weights if n.startswith("backbone.") and n.endswith("num_batches_tracked")}


class RecordingCheckpointer(DetectionCheckpointer):
    """Keeps what Detectron2 would warn of."""

    def _log_incompatible_keys(self, incompatible):
        self.incompatible = incompatible


def load(model: nn.Module, path: Path):
    """Load as train_net.py does; returns the missing, unexpected and wrongly shaped keys."""
    checkpointer = RecordingCheckpointer(model)
    checkpointer.load(str(path), checkpointables=[])
    return checkpointer.incompatible


def loads_wholly(model: nn.Module, path: Path) -> bool:
    return not any(load(model, path))


def mmdet_layers() -> Iterator[tuple[str, tuple[int, int, int], str]]:
    """Name of each convolution, its channels out and in and its kernel size, and its norm."""
    yield "backbone.conv1", (STEM, 3, 7), "backbone.bn1"
    channels = STEM
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        inner, out = WIDTH * 2**stage, OUT * 2**stage
        for index in range(num_blocks):
            block = f"backbone.layer{stage + 1}.{index}"
            yield f"{block}.conv1", (inner, channels, 1), f"{block}.bn1"
            yield f"{block}.conv2", (inner, inner, 3), f"{block}.bn2"
            yield f"{block}.conv3", (out, inner, 1), f"{block}.bn3"
            if index == 0:
                yield f"{block}.downsample.0", (out, channels, 1), f"{block}.downsample.1"
            channels = out
    yield "neck.lateral_conv", (CHANNELS, channels, 1), "neck.lateral_norm"
    yield "neck.fpn_conv", (CHANNELS, CHANNELS, 3), "neck.fpn_norm"
    shapes = {1: (MID, CHANNELS, 1), 2: (MID, MID, 3), 3: (CHANNELS, MID, 1)}
    modules = {
        f"neck.dilated_encoder_blocks.{block}.conv{number}": shape
        for block in range(len(DILATIONS))
        for number, shape in shapes.items()
    }
    for tower, num_convs in (("cls", 2), ("bbox", 4)):
        for index in range(num_convs):
            modules[f"bbox_head.{tower}_subnet.{index}"] = (CHANNELS, CHANNELS, 3)
    for name, shape in modules.items():
        yield f"{name}.conv", shape, f"{name}.bn"
    for name, out in (("cls_score", CLASSES), ("bbox_pred", 4), ("object_pred", 1)):
        yield f"bbox_head.{name}", (ANCHORS * out, CHANNELS, 3), ""


def make_mmdet_weights() -> Weights:
    """Random weights under the names of mmdetection's YOLOF."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    weights = {}
    for conv, (out, channels, size), norm in mmdet_layers():
        bound = (3 / (channels * size**2)) ** 0.5  # keeps the spread of the features
        weights[f"{conv}.weight"] = uniform(out, channels, size, size, low=-bound, high=bound)
        if not norm or conv in ("neck.lateral_conv", "neck.fpn_conv"):
            weights[f"{conv}.bias"] = uniform(out, low=-0.5, high=0.5)
        if norm:
            for kind in ("weight", "bias", "running_mean", "running_var"):
                low = 0.5 if kind in ("weight", "running_var") else -0.5
                weights[f"{norm}.{kind}"] = uniform(out, low=low, high=low + 1)
            weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return weights
