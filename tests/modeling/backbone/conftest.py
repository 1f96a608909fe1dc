from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

from tests.modeling.backbone.arrangements import NEEDED


@pytest.fixture
def make_backbone(cfg: CfgNode):
    def make(name: str, **keys: object) -> Backbone:
        torch.manual_seed(0)
        cfg.MODEL.BACKBONE.NAME = name
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.OUT_FEATURES = NEEDED.get(name, ["res3", "res4", "res5"])
        fpn = {"IN_FEATURES": ["res3", "res4", "res5"], "OUT_CHANNELS": 32}
        cfg.MODEL.FPN.update({**fpn, **keys})
        return build_backbone(cfg)

    return make
