from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.modeling.images import NORMS
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import build_activation, build_norm, conv_norm_act, init_conv_normal


@pytest.mark.parametrize(("name", "kind"), [*NORMS.items(), ("", nn.Identity)])
def test_norms_are_built_by_name(name, kind):
    assert type(build_norm(name, 64)) is kind


@pytest.mark.parametrize(("name", "negative"), [("ReLU", 0.0), ("LeakyReLU", -0.2)])
def test_activations_are_built_by_name(name, negative):
    activated = build_activation(name)(torch.tensor([-2.0, 3.0])).tolist()
    assert activated == pytest.approx([negative, 3.0])


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 5)])
def test_a_convolution_keeps_height_and_width_and_has_a_bias(kernel_size, dilation):
    conv, norm, activation = conv_norm_act(
        2, 4, kernel_size, norm="BN", activation="ReLU", dilation=dilation
    )
    assert conv(torch.randn(1, 2, 6, 7)).shape == (1, 4, 6, 7)
    assert conv.bias is not None
    assert (type(norm), type(activation)) == (nn.BatchNorm2d, nn.ReLU)


def test_convolutions_are_drawn_from_a_narrow_normal_and_other_layers_are_left_alone():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 1, bias=False), nn.Linear(4, 4))
    linear = module[2].weight.clone()
    init_conv_normal(module, std=0.02)
    for conv in module[:2]:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert conv.weight.mean().abs() < 0.002
    assert not module[0].bias.any()
    assert torch.equal(module[2].weight, linear)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_norm("bn", 64), "unknown NORM 'bn'; expected one of 'BN'"),
        (lambda: build_norm("GN", 8), "NORM 'GN' cannot take 8 channels"),
        (lambda: build_activation("relu"), "unknown ACTIVATION 'relu'; expected one of ReLU"),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
