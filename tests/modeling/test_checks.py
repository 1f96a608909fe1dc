from __future__ import annotations

import logging

import pytest
from detectron2.modeling import build_model

from yolof_d2.config import build_cfg
from yolof_d2.errors import ConfigError

UNIFORM = "MODEL.YOLOF.MATCHER.UNIFORM"


def change(cfg, changes):
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]},
            r"ANCHOR_GENERATOR.SIZES is \[\[32\], \[64\]\].*one feature map",
        ),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[]]}, r"SIZES is \[\[\]\]"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32, -64]]}, "positive"),
        ({"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.0]]}, "ASPECT_RATIOS.*positive"),
        (
            {"MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP": 15},
            "CENTER_CLAMP is 15 pixels.*stride of 32.*16 pixels",
        ),
        (
            {"MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [2, 42]},
            r"DILATIONS is \[2, 42\].*stride 32.*has 42 cells",
        ),
        (
            {f"{UNIFORM}.TOPK": 21, "INPUT.MIN_SIZE_TRAIN": (64,)},
            r"UNIFORM.TOPK is 21.*has 20 anchors",
        ),
        (
            {
                "MODEL.YOLOF.MATCHER.NAME": "TopKIoUMatcher",
                "MODEL.YOLOF.MATCHER.TOPK_IOU.TOPK": 9999,
            },
            r"TOPK_IOU.TOPK is 9999.*has 3125 anchors",
        ),
        (
            {"MODEL.BACKBONE.NAME": "build_resnet_backbon"},
            "MODEL.BACKBONE.NAME is 'build_resnet_backbon'.*build_resnet_backbone",
        ),
        ({"MODEL.RESNETS.DEPTH": 18}, "RES2_OUT_CHANNELS"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)).split(".")[-1],
)
def test_what_cannot_work_is_refused_when_the_model_is_built(cfg, changes, said):
    with pytest.raises(ConfigError, match=said):
        build_model(change(cfg, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP": 16},
        {"MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [41]},
        {f"{UNIFORM}.TOPK": 20, "INPUT.MIN_SIZE_TRAIN": (64,)},
        {"INPUT.FIXED_SIZE.TRAIN": (288, 320), f"{UNIFORM}.TOPK": 9 * 9 * 5},
        # Values of parts that are not built.
        {"MODEL.YOLOF.MATCHER.NAME": "ATSSMatcher", f"{UNIFORM}.TOPK": 99999},
        {
            "MODEL.YOLOF.ENCODER.NAME": "ProjectorEncoder",
            "MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [999],
        },
    ],
)
def test_the_last_value_that_can_work_is_built(cfg, changes):
    build_model(change(cfg, changes))


def test_a_dilation_is_compared_with_the_fixed_size_when_there_is_one(cfg):
    changes = {"INPUT.FIXED_SIZE.TRAIN": (64, 256), "MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [8]}
    with pytest.raises(ConfigError, match="has 8 cells"):
        build_model(change(cfg, changes))


def test_values_of_c5_left_on_a_dc5_map_are_named_with_those_of_dc5(cfg, caplog):
    change(cfg, {"MODEL.RESNETS.RES5_DILATION": 2, f"{UNIFORM}.TOPK": 8})
    with caplog.at_level(logging.WARNING):
        build_model(cfg)
    (record,) = [r for r in caplog.records if r.name == "yolof_d2.modeling.checks"]
    said = record.getMessage()
    assert "SIZES [[16, 32, 64, 128, 256, 512]] (is [[32" in said
    assert "DILATIONS [4, 8, 12, 16] (is [2" in said
    assert "POS_IGNORE_IOU 0.1 (is 0.15)" in said
    assert "TOPK" not in said


@pytest.mark.parametrize(
    "name",
    ["yolof_R_50_DC5_1x", "yolof_CSP_D_53_DC5_3x", "yolof_R_50_C5_1x", "quick/synthetic"],
)
def test_the_configs_here_are_built_without_a_warning(name, caplog):
    cfg = build_cfg(f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    with caplog.at_level(logging.WARNING):
        build_model(cfg)
    assert not [r for r in caplog.records if r.name.startswith("yolof_d2")]


def test_mistakes_in_the_backbone_are_found_for_every_meta_architecture():
    with pytest.raises(ConfigError, match=r"MODEL.BACKBONE.NAME is 'no'"):
        build_cfg("", ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "no"])
