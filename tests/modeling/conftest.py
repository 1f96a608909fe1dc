from __future__ import annotations

import pytest
from detectron2.config import CfgNode

from tests.small import default_cfg


@pytest.fixture
def cfg() -> CfgNode:
    """YOLOF of three classes on a ResNet-50 with a sixteenth of its width or less."""
    cfg = default_cfg()
    cfg.MODEL.META_ARCHITECTURE = "YOLOF"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.YOLOF.NUM_CLASSES = 3
    cfg.MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS = 16
    cfg.MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS = 8
    return cfg
