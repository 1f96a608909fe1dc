"""Rules for every decoder, beyond the checks of the conformance suite."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from tests.modeling.images import NORMS
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import DECODER_REGISTRY, Decoder, build_decoder

INPUT = ShapeSpec(channels=32, stride=16)
NODES = {"ImplicitObjectnessDecoder": "IMPLICIT_OBJECTNESS", "PlainDecoder": "PLAIN"}
# For every key of their nodes a value that is not the default.
VALUES = {
    "NUM_SHARED_CONVS": 1,
    "NUM_CLS_CONVS": 0,
    "NUM_REG_CONVS": 3,
    "NORM": "GN",
    "ACTIVATION": "LeakyReLU",
    "PRIOR_PROB": 0.1,
}

every_decoder = pytest.mark.parametrize("name", sorted(NODES))


def make_decoder(cfg: CfgNode, name: str, **options) -> Decoder:
    cfg.MODEL.YOLOF.DECODER.NAME = name
    node = cfg.MODEL.YOLOF.DECODER[NODES[name]]
    node.update({"NUM_SHARED_CONVS": 1, "NUM_CLS_CONVS": 1, "NUM_REG_CONVS": 2, **options})
    torch.manual_seed(0)
    return build_decoder(cfg, INPUT, num_anchors=2)


def test_all_decoders_are_tested_here():
    own = [name for name, part in DECODER_REGISTRY if part.__module__.startswith("yolof_d2.")]
    assert sorted(NODES) == sorted(own)


@every_decoder
def test_each_key_of_its_own_node_arrives_and_no_other_is_read(cfg, name):
    for other in NODES.values():
        if other != NODES[name]:
            del cfg.MODEL.YOLOF.DECODER[other]
    default = cfg.MODEL.YOLOF.DECODER[NODES[name]].clone()
    assert default.keys() == VALUES.keys()
    assert all(default[key] != value for key, value in VALUES.items())
    built = make_decoder(cfg, name, **VALUES)
    torch.manual_seed(0)
    options = {key.lower(): value for key, value in VALUES.items()}
    expected = DECODER_REGISTRY.get(name)(INPUT, num_anchors=2, num_classes=3, **options)
    assert str(built) == str(expected)
    feature = torch.randn(1, 32, 4, 5)
    for ours, theirs in zip(built(feature), expected(feature), strict=True):
        assert torch.equal(ours, theirs)


@every_decoder
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_are_float32_in_half_precision(cfg, name, dtype):
    decoder = make_decoder(cfg, name).eval()
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.05)
    feature = torch.randn(2, 32, 3, 5)
    with torch.no_grad():
        expected = decoder(feature)
        with torch.autocast("cpu", dtype=dtype):
            under_autocast = decoder(feature)
        converted = decoder.to(dtype)(feature.to(dtype))
    for outputs in (under_autocast, converted):
        for output, exact in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, exact, rtol=0.05, atol=0.05)


@every_decoder
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_the_norm_asked_for_follows_each_tower_convolution_and_leaves_the_names(cfg, name, norm):
    def conv_keys(decoder: Decoder) -> set[str]:
        convs = [key for key, layer in decoder.named_modules() if isinstance(layer, nn.Conv2d)]
        return {f"{key}.{kind}" for key in convs for kind in ("weight", "bias")}

    decoder, without = (make_decoder(cfg, name, NORM=n).eval() for n in (norm, ""))
    found = [layer for layer in decoder.modules() if isinstance(layer, tuple(NORMS.values()))]
    assert [type(layer) for layer in found] == [NORMS[norm]] * 4
    assert conv_keys(decoder) == conv_keys(without) == without.state_dict().keys()
    assert conv_keys(decoder) <= decoder.state_dict().keys()
    assert all(output.isfinite().all() for output in decoder(torch.randn(2, 32, 3, 4)))


@every_decoder
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NUM_SHARED_CONVS": -1}, "NUM_SHARED_CONVS must be 0 or more, got -1"),
        ({"NUM_CLS_CONVS": -1}, "NUM_CLS_CONVS must be 0 or more, got -1"),
        ({"NUM_REG_CONVS": -2}, "NUM_REG_CONVS must be 0 or more, got -2"),
        ({"PRIOR_PROB": 0.0}, r"PRIOR_PROB must lie in \(0, 1\), got 0.0"),
        ({"PRIOR_PROB": 1.0}, r"PRIOR_PROB must lie in \(0, 1\), got 1.0"),
    ],
)
def test_impossible_settings_are_refused_with_the_key_of_ones_own_node(cfg, name, options, message):
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.DECODER.{NODES[name]}.{message}"):
        make_decoder(cfg, name, **options)
