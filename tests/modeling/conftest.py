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
    cfg.MODEL.RESNETS.update(OUT_FEATURES=["res5"], NORM="BN")
    cfg.MODEL.RESNETS.update(STEM_OUT_CHANNELS=4, RES2_OUT_CHANNELS=8, WIDTH_PER_GROUP=4)
    cfg.MODEL.ANCHOR_GENERATOR.update(SIZES=[[32, 64, 128, 256, 512]], ASPECT_RATIOS=[[1.0]])
    cfg.MODEL.YOLOF.NUM_CLASSES = 3
    cfg.MODEL.YOLOF.ENCODER.DILATED.update(NUM_CHANNELS=16, MID_CHANNELS=8)
    return cfg
