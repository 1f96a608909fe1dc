from __future__ import annotations

import pytest
from detectron2.config import CfgNode


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
