from __future__ import annotations

import logging

import pytest
from detectron2.layers import ShapeSpec

from yolof_d2.config import build_cfg
from yolof_d2.modeling import YOLOF, build_model
from yolof_d2.modeling.training_map import count_cells


@pytest.mark.parametrize(
    ("keys", "cells"),
    [
        ({"MIN_SIZE_TRAIN": (640, 800), "MAX_SIZE_TRAIN": 1333}, (20, 42)),
        ({"FIXED_SIZE.TRAIN": (320, 288)}, (9, 10)),
    ],
)
def test_cells_of_the_shortest_and_the_longest_side(cfg, keys, cells):
    cfg.INPUT.merge_from_list([item for pair in keys.items() for item in pair])
    assert count_cells(cfg, ShapeSpec(stride=32)) == cells


class Mine(YOLOF):
    pass


@pytest.mark.parametrize("detector", [YOLOF, Mine])
def test_values_of_c5_left_on_a_dc5_map_are_named_with_those_of_dc5(cfg, caplog, detector):
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.YOLOF.MATCHER.UNIFORM.TOPK = 8
    with caplog.at_level(logging.WARNING):
        detector(cfg)
    said = [r.getMessage() for r in caplog.records if r.name == "yolof_d2.modeling.training_map"]
    assert len(said) == 3 and all("The map has stride 16" in text for text in said)
    said = "".join(said)
    assert "SIZES [[16, 32, 64, 128, 256, 512]] (is [[32" in said
    assert "DILATIONS [4, 8, 12, 16] (is [2" in said
    assert "POS_IGNORE_IOU 0.1 (is 0.15)" in said
    assert "TOPK" not in said


def test_anchors_unlike_the_published_ones_mean_that_nothing_is_said(cfg, caplog):
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256]]
    build_model(cfg)
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["yolof_R_50_DC5_1x", "yolof_CSP_D_53_DC5_3x", "yolof_R_50_C5_1x", "quick/synthetic"]
)
def test_the_configs_here_are_built_without_a_warning(name, caplog):
    cfg = build_cfg(f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    with caplog.at_level(logging.WARNING):
        build_model(cfg)
    assert not [r for r in caplog.records if r.name.startswith("yolof_d2")]
