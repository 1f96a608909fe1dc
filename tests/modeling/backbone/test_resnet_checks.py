from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone.resnet_checks import check_resnet_config


def is_built_by_detectron2(cfg: CfgNode) -> bool:
    try:
        with torch.device("meta"):
            build_backbone(cfg)
    except (AssertionError, KeyError, ValueError):
        return False
    except ImportError:  # deformable convolution, when Detectron2 is not compiled
        pass
    return True


def assert_agrees(cfg: CfgNode, message: str) -> None:
    """Check that a config is refused with a message where Detectron2 cannot build it."""
    refused = pytest.raises(ConfigError, match=message)
    with contextlib.nullcontext() if is_built_by_detectron2(cfg) else refused:
        check_resnet_config(cfg)


@pytest.mark.parametrize("depth", [18, 26, 34, 50])
def test_what_detectron2_asserts_is_refused_and_nothing_else(cfg, depth):
    for dilation, width, groups, deform in itertools.product(
        (1, 2, 3), (64, 256), (1, 2), (False, True)
    ):
        cfg.MODEL.RESNETS.update(
            DEPTH=depth,
            RES5_DILATION=dilation,
            RES2_OUT_CHANNELS=width,
            NUM_GROUPS=groups,
            DEFORM_ON_PER_STAGE=[False, False, False, deform],
        )
        assert_agrees(cfg, r"MODEL\.RESNETS\.")


@pytest.mark.parametrize("out_features", [["stem"], ["res2", "res5"], ["res1"], ["p5", "res5"], []])
def test_features_are_refused_when_detectron2_does_not_have_them(cfg, out_features):
    cfg.MODEL.RESNETS.OUT_FEATURES = out_features
    assert_agrees(cfg, r"MODEL.RESNETS.OUT_FEATURES .*stem, res2, .*got \[")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DEPTH": 20}, "MODEL.RESNETS.DEPTH must be one of 18, 34, 50, 101, 152, got 20"),
        ({"RES5_DILATION": 4}, "MODEL.RESNETS.RES5_DILATION must be 1 or 2, got 4"),
        (
            {"DEPTH": 18, "RES2_OUT_CHANNELS": 256, "RES5_DILATION": 2},
            r"MODEL.RESNETS.DEPTH 18 has basic blocks, .* "
            r"MODEL.RESNETS.RES2_OUT_CHANNELS 64 \(is 256\), "
            r"MODEL.RESNETS.RES5_DILATION 1 \(is 2\) only",
        ),
        ({"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 32}, r"NUM_GROUPS 1 \(is 32\)"),
    ],
)
def test_the_message_names_key_value_and_what_was_expected(cfg, keys, message):
    cfg.MODEL.RESNETS.update(keys)
    with pytest.raises(ConfigError, match=message):
        check_resnet_config(cfg)
