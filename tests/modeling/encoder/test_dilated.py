from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.encoder import DilatedEncoder, build_encoder

INPUT = ShapeSpec(channels=6, stride=32)


class Mine(DilatedEncoder):
    pass


def make_encoder(dilations=(2, 4), **options) -> DilatedEncoder:
    torch.manual_seed(0)
    options = {"num_channels": 8, "mid_channels": 4, **options}
    return DilatedEncoder(INPUT, dilations=dilations, **options)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("dilations", [(), (1,), (2,), (2, 4), (2, 4, 6, 8)])
def test_an_impulse_reaches_one_cell_and_one_dilation_further_per_block(dilations, shortcut):
    encoder = make_encoder(dilations, norm="", shortcut=shortcut).eval()
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.1)  # positive: nothing cancels, no ReLU bites
    impulse = torch.zeros(1, 6, 61, 61)
    impulse[..., 30, 30] = 1
    with torch.no_grad():
        rows, columns = encoder(impulse)[0].amax(0).nonzero(as_tuple=True)
    reach = 1 + sum(dilations)
    assert (rows.min(), rows.max()) == (30 - reach, 30 + reach)
    assert (columns.min(), columns.max()) == (30 - reach, 30 + reach)


def test_a_block_adds_to_its_input_and_has_no_activation_after_the_sum():
    encoder = make_encoder((2,)).eval()
    (block,) = encoder.dilated_encoder_blocks
    nn.init.zeros_(block.conv3[0].weight)
    feature = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(feature), feature)


def test_without_shortcut_the_blocks_are_a_plain_chain():
    encoder = make_encoder(shortcut=False).eval()
    feature = torch.randn(1, 6, 4, 4)
    expected = encoder.fpn_norm(
        encoder.fpn_conv(encoder.lateral_norm(encoder.lateral_conv(feature)))
    )
    for block in encoder.dilated_encoder_blocks:
        expected = block.conv3(block.conv2(block.conv1(expected)))
    assert expected.any()
    assert torch.equal(encoder(feature), expected)
    assert encoder.state_dict().keys() == make_encoder().state_dict().keys()


def test_a_seed_gives_the_weights_of_all_layers_built_and_then_all_initialised():
    encoder = make_encoder((2, 4))
    torch.manual_seed(0)
    projector = [nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3)]
    shapes = [(8, 4, 1), (4, 4, 3), (4, 8, 1)] * 2
    blocks = [nn.Conv2d(*shape) for shape in shapes]
    for conv in projector:
        c2_xavier_fill(conv)
    for conv in blocks:
        nn.init.normal_(conv.weight, std=0.01)
    convs = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    for ours, expected in zip(convs, projector + blocks, strict=True):
        assert torch.equal(ours.weight, expected.weight)
        assert not ours.bias.any()


def test_published_encoder_has_its_published_number_of_weights(cfg):
    cfg.MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS = 512
    cfg.MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS = 128
    encoder = build_encoder(cfg, ShapeSpec(channels=2048, stride=32))
    convs = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(conv.weight.numel() for conv in convs) == 4_521_984


@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_parameters_have_the_names_of_the_public_checkpoints_whatever_the_norm(norm):
    encoder = DilatedEncoder(INPUT, num_channels=32, mid_channels=32, dilations=[2], norm=norm)
    names = {
        f"{name}.{kind}" for name in ("lateral_conv", "fpn_conv") for kind in ("weight", "bias")
    }
    for conv in ("conv1", "conv2", "conv3"):
        names |= {f"dilated_encoder_blocks.0.{conv}.0.{kind}" for kind in ("weight", "bias")}
    if norm:
        norms = ["lateral_norm", "fpn_norm"]
        norms += [f"dilated_encoder_blocks.0.conv{i}.1" for i in (1, 2, 3)]
        names |= {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    assert {name for name, _ in encoder.named_parameters()} == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": [2, 0]}, r"DILATIONS must be 1 or more each, got \[2, 0\]"),
        ({"mid_channels": 0}, "ENCODER.DILATED.MID_CHANNELS must be 1 or more, got 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**options)


@pytest.mark.parametrize("encoder", [DilatedEncoder, Mine])
@pytest.mark.parametrize(("fixed_size", "cells"), [((), 42), ((64, 256), 8)])
def test_a_dilation_as_wide_as_the_map_is_refused(cfg, encoder, fixed_size, cells):
    cfg.INPUT.FIXED_SIZE.TRAIN = fixed_size
    node = cfg.MODEL.YOLOF.ENCODER.DILATED
    node.DILATIONS = [2, cells - 1]
    encoder(cfg, INPUT)
    node.DILATIONS = [2, cells]
    message = rf"DILATIONS is \[2, {cells}\].*stride 32.*has {cells} cells"
    with pytest.raises(ConfigError, match=message):
        encoder(cfg, INPUT)
