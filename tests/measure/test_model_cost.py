from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.ops import misc

from yolof_d2.config import build_cfg
from yolof_d2.measure.model_cost import (
    build_meta_model,
    count_multiply_adds,
    count_parameters,
    input_size,
)


def test_multiply_adds_are_those_that_fvcore_counts():
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    cfg = build_cfg("configs/yolof_R_50_C5_1x.yaml", overrides)

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model(cfg).eval()

        def forward(self, image):
            return self.model.predict(image)[:2]

    analysis = FlopCountAnalysis(Dense(), torch.zeros(1, 3, 64, 96))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    expected = analysis.by_operator()["conv"]
    assert expected > 0
    assert count_multiply_adds(build_meta_model(cfg), (64, 96)) == expected


def test_attention_is_counted_by_the_number_of_cells_squared():
    name = ["MODEL.YOLOF.ENCODER.NAME", "TransformerEncoder"]
    layers = "MODEL.YOLOF.ENCODER.TRANSFORMER.NUM_LAYERS"
    one, two = (
        build_meta_model(build_cfg("configs/yolof_R_50_C5_1x.yaml", [*name, layers, number]))
        for number in "12"
    )
    cells, channels, feedforward = 3 * 4, 256, 2048
    difference = count_multiply_adds(two, (96, 128)) - count_multiply_adds(one, (96, 128))
    linear = cells * channels * (4 * channels + 2 * feedforward)
    assert difference == linear + 2 * cells**2 * channels


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d, misc.FrozenBatchNorm2d])
def test_norms_count_as_parameters_frozen_or_not(norm):
    module = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), norm(8))
    assert count_parameters(module) == 24 + 16


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("yolof_R_50_C5_1x", (800, 1333)),
        ("baselines/retinanet_R_50_FPN_1x", (800, 1344)),
        ("yolof_CSP_D_53_DC5_3x", (608, 608)),
    ],
)
def test_the_input_is_a_test_image_padded_for_the_backbone(name, size):
    cfg = build_cfg(f"configs/{name}.yaml")
    assert input_size(cfg, build_meta_model(cfg)) == size
