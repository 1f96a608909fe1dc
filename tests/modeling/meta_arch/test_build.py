from __future__ import annotations

import pytest
import torch
from detectron2 import modeling
from torch import nn

from tests.modeling.images import make_image, train_step
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


# All wider than 64 pixels, so that p6 has more than one cell: for a 3x3 convolution of stride 2 on
# a map of one cell, as of p7 on such a p6, PyTorch 2.12 on the CPU leaves the weights' gradient
# partly unset in bf16.
BATCHES = {
    "boxes": [make_image(96, 128, [(10, 10, 60, 50), (70, 5, 120, 90)], s) for s in (0, 1)],
    "one image of two without": [make_image(70, 101, [(9, 9, 50, 60)]), make_image(80, 80)],
    "none at all": [make_image(70, 99), make_image(80, 80)],
    "500 identical": [make_image(80, 80, [(0, 0, 80, 80)] * 500), make_image(80, 80)],
    "one pixel": [make_image(80, 80, [(5, 5, 6, 6), (0, 0, 80, 80)])] * 2,
    "narrow": [make_image(33, 500, [(100, 5, 160, 30)])],
}


@pytest.mark.parametrize("name", ["YOLOF", "FCOS", "RetinaNet", "RetinaNetPlus"])
@pytest.mark.parametrize("boxes", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_detector_trains_and_detects_on_any_boxes_in_any_precision(request, name, boxes, dtype):
    cfg = request.getfixturevalue("cfg" if name == "YOLOF" else "pyramid_cfg")
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.RETINANET.NORM, cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = "GN", "giou"
    torch.manual_seed(0)
    model: nn.Module = build_model(cfg)
    train_step(model, BATCHES[boxes], dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), torch.no_grad():
        assert len(model.eval()(BATCHES[boxes])) == len(BATCHES[boxes])
