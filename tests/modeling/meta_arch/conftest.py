from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances


@pytest.fixture
def pyramid_cfg(cfg: CfgNode) -> CfgNode:
    """The tiny ResNet under an FPN of 64 channels, for detectors of five levels."""
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.5] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.FCOS.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = cfg.MODEL.FCOS.NUM_CONVS = 1
    return cfg


@pytest.fixture
def make_image() -> Callable[..., dict[str, Any]]:
    def make(height: int, width: int, boxes: Sequence[tuple] = (), seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
        instances.gt_classes = torch.arange(len(boxes)) % 3
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        return {"image": image, "instances": instances}

    return make


@pytest.fixture
def batches(make_image) -> dict[str, list[dict[str, Any]]]:
    """All wider than 64 pixels, so that p6 has more than one cell.

    For a 3x3 convolution of stride 2 on a map of one cell, as of p7 on such a p6, PyTorch 2.12 on
    the CPU leaves the weights' gradient partly unset in bf16.
    """
    return {
        "boxes": [make_image(96, 128, [(10, 10, 60, 50), (70, 5, 120, 90)], s) for s in (0, 1)],
        "one image of two without": [make_image(70, 101, [(9, 9, 50, 60)]), make_image(80, 80)],
        "none at all": [make_image(70, 99), make_image(80, 80)],
        "one pixel and identical": [make_image(80, 80, [(5, 5, 6, 6), *[(0, 0, 80, 80)] * 9])] * 2,
    }
