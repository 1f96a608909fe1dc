from __future__ import annotations

import pytest
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling import (
    ENCODER_REGISTRY,
    Encoder,
    build_decoder,
    build_encoder,
    build_loss,
    build_matcher,
)

SHAPE = ShapeSpec(channels=16, stride=32)
SLOTS = [
    ("ENCODER", lambda cfg: build_encoder(cfg, SHAPE), "DilatedEncoder"),
    ("DECODER", lambda cfg: build_decoder(cfg, SHAPE, 5), "ImplicitObjectnessDecoder"),
    ("MATCHER", lambda cfg: build_matcher(cfg, SHAPE, 5), "UniformMatcher"),
    ("LOSS", build_loss, "FocalBoxLoss"),
]


@pytest.mark.parametrize(("slot", "build", "default"), SLOTS)
def test_default_parts_are_built_by_name(cfg, slot, build, default):
    assert type(build(cfg)).__name__ == cfg.MODEL.YOLOF[slot].NAME == default


@pytest.mark.parametrize(("slot", "build", "default"), SLOTS)
def test_an_unknown_name_lists_the_known_ones(cfg, slot, build, default):
    cfg.MODEL.YOLOF[slot].NAME = "Dilated"
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.{slot}.NAME is 'Dilated'.*{default}"):
        build(cfg)


def test_an_encoder_of_ones_own_decides_channels_and_stride(cfg, monkeypatch):
    class Halving(Encoder):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.conv = nn.Conv2d(input_shape.channels, 24, 1, stride=2)
            self.stride = input_shape.stride * 2

        def forward(self, feature):
            return self.conv(feature)

        def output_shape(self):
            return ShapeSpec(channels=24, stride=self.stride)

    known = {**ENCODER_REGISTRY._obj_map, "Halving": Halving}
    monkeypatch.setattr(ENCODER_REGISTRY, "_obj_map", known)
    cfg.MODEL.YOLOF.ENCODER.NAME = "Halving"
    model = build_model(cfg)
    assert model.decoder.cls_score.in_channels == 24
    assert model.anchor_generator.strides == [64]
