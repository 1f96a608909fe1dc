"""Rules for every encoder, beyond the checks of the conformance suite."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from tests.modeling.images import NORMS
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import ENCODER_REGISTRY, Encoder, build_encoder

INPUT = ShapeSpec(channels=6, stride=16)
# Of each encoder its node, and for every key in it a value that is not the default.
NODES = {
    "ASPPEncoder": (
        "ASPP",
        {"NUM_CHANNELS": 32, "DILATIONS": [1, 2, 3], "NORM": "GN", "ACTIVATION": "LeakyReLU"},
    ),
    "DilatedEncoder": (
        "DILATED",
        {
            "NUM_CHANNELS": 32,
            "MID_CHANNELS": 64,
            "DILATIONS": [1, 3],
            "SHORTCUT": False,
            "NORM": "GN",
            "ACTIVATION": "LeakyReLU",
        },
    ),
    "ProjectorEncoder": ("PROJECTOR", {"NUM_CHANNELS": 32, "NORM": "GN"}),
    "TransformerEncoder": (
        "TRANSFORMER",
        {
            "NUM_CHANNELS": 32,
            "NUM_LAYERS": 2,
            "NUM_HEADS": 4,
            "FEEDFORWARD_CHANNELS": 12,
            "DROPOUT": 0.25,
        },
    ),
}
# Layers with a norm, at the dilations above.
NUM_NORMS = {"ASPPEncoder": 5, "DilatedEncoder": 8, "ProjectorEncoder": 2}

every_encoder = pytest.mark.parametrize("name", sorted(NODES))


def make_encoder(cfg: CfgNode, name: str, **options) -> Encoder:
    node, values = NODES[name]
    cfg.MODEL.YOLOF.ENCODER.NAME = name
    cfg.MODEL.YOLOF.ENCODER[node].update({**values, **options})
    torch.manual_seed(0)
    return build_encoder(cfg, INPUT)


def test_all_encoders_are_tested_here():
    own = [name for name, part in ENCODER_REGISTRY if part.__module__.startswith("yolof_d2.")]
    assert sorted(NODES) == sorted(own)


@every_encoder
def test_each_key_of_its_own_node_arrives_and_no_other_is_read(cfg, name):
    node, values = NODES[name]
    for other, _ in NODES.values():
        if other != node:
            del cfg.MODEL.YOLOF.ENCODER[other]
    default = cfg.MODEL.YOLOF.ENCODER[node].clone()
    assert all(default[key] != value for key, value in values.items())
    built = make_encoder(cfg, name).eval()
    torch.manual_seed(0)
    options = {key.lower(): value for key, value in values.items()}
    expected = ENCODER_REGISTRY.get(name)(INPUT, **options).eval()
    assert str(built) == str(expected)
    feature = torch.randn(1, 6, 4, 5)
    assert torch.equal(built(feature), expected(feature))
    assert built.output_shape() == ShapeSpec(channels=32, stride=16)


@every_encoder
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same(cfg, name, dtype):
    encoder = make_encoder(cfg, name).eval()
    feature = torch.randn(1, 6, 4, 5)
    with torch.no_grad():
        expected = encoder(feature)
        with torch.autocast("cpu", dtype=dtype):
            under_autocast = encoder(feature)
        converted = encoder.to(dtype)(feature.to(dtype))
    for output in (under_autocast, converted):
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", sorted(NUM_NORMS))
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_the_norm_asked_for_follows_the_convolutions_and_leaves_their_names(cfg, name, norm):
    def conv_names(encoder: Encoder) -> set[str]:
        return {key for key, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)}

    encoder, without = (make_encoder(cfg, name, NORM=n).eval() for n in (norm, ""))
    found = [layer for layer in encoder.modules() if isinstance(layer, tuple(NORMS.values()))]
    assert [type(layer) for layer in found] == [NORMS[norm]] * NUM_NORMS[name]
    assert not any(isinstance(layer, tuple(NORMS.values())) for layer in without.modules())

    assert conv_names(encoder) == conv_names(without)
    weights = {f"{key}.weight" for key in conv_names(encoder)}
    assert weights <= encoder.state_dict().keys() & without.state_dict().keys()

    feature = torch.randn(2, 6, 4, 5)
    assert encoder(feature).isfinite().all() and without(feature).isfinite().all()


@every_encoder
def test_a_width_of_nothing_is_refused(cfg, name):
    key = f"MODEL.YOLOF.ENCODER.{NODES[name][0]}.NUM_CHANNELS"
    with pytest.raises(ConfigError, match=f"{key} must be 1 or more, got 0"):
        make_encoder(cfg, name, NUM_CHANNELS=0)
