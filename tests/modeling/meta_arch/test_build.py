from __future__ import annotations

import pytest
from detectron2 import modeling

from yolof_d2.errors import ConfigError
from yolof_d2.modeling import FCOS, YOLOF, RetinaNetPlus, build_model

DETECTORS = [type(f"My{part.__name__}", (part,), {}) for part in (YOLOF, FCOS, RetinaNetPlus)]


def build_retinanet(cfg):
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    return build_model(cfg)


@pytest.mark.parametrize("build", [build_retinanet, *DETECTORS])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("BACKBONE.NAME", "build_resnet_backbon", "NAME is 'build_resnet_backbon'.*_backbone,"),
        ("RESNETS.DEPTH", 18, "RES2_OUT_CHANNELS 64"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_told_in_words(cfg, build, key, value, said):
    cfg.MODEL.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=said):
        build(cfg)


def test_the_model_is_detectron2s(pyramid_cfg):
    pyramid_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    expected = modeling.build_model(pyramid_cfg)
    assert str(build_model(pyramid_cfg)) == str(expected)
