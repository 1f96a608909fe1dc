from __future__ import annotations

import pytest

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import build_backbone


def test_an_unknown_name_is_refused_with_those_that_are_known(cfg):
    cfg.MODEL.BACKBONE.NAME = "no"
    with pytest.raises(ConfigError, match=r"MODEL.BACKBONE.NAME is 'no'.*build_resnet_backbone,"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    "name",
    ["build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_simo_backbone"],
)
def test_resnets_are_checked(cfg, name):
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = 20
    with pytest.raises(ConfigError, match=r"MODEL\.RESNETS\.DEPTH must be .*, got 20"):
        build_backbone(cfg)


def test_other_backbones_do_not_read_the_resnet_values(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_cspdarknet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 20
    assert build_backbone(cfg).output_shape()["res5"].stride == 32
