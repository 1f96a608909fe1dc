from __future__ import annotations

import pytest
from detectron2.config import CfgNode


@pytest.fixture
def pyramid_cfg(cfg: CfgNode) -> CfgNode:
    """The tiny ResNet under an FPN of 64 channels, for detectors of five levels."""
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.update(IN_FEATURES=["res3", "res4", "res5"], OUT_CHANNELS=64)
    sizes = [[x, x * 1.5] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.ANCHOR_GENERATOR.update(SIZES=sizes, ASPECT_RATIOS=[[0.5, 1.0]])
    for node in (cfg.MODEL.RETINANET, cfg.MODEL.FCOS):
        node.update(NUM_CLASSES=3, NUM_CONVS=1)
    return cfg
