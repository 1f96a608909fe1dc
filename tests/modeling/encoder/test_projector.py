from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F

from yolof_d2.modeling.encoder import DilatedEncoder, ProjectorEncoder

INPUT = ShapeSpec(channels=6, stride=32)


def make_encoder() -> ProjectorEncoder:
    torch.manual_seed(0)
    return ProjectorEncoder(INPUT, num_channels=8)


def test_it_is_two_convolutions_each_normalised_and_without_activation():
    encoder = make_encoder().train()
    feature = torch.randn(2, 6, 5, 7)
    weights = encoder.state_dict()

    def normalise(x):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()

    expected = normalise(F.conv2d(feature, weights["lateral_conv.weight"]))
    expected = normalise(F.conv2d(expected, weights["fpn_conv.weight"], padding=1))
    torch.testing.assert_close(encoder(feature), expected, rtol=1e-4, atol=1e-4)
    assert expected.min() < 0


def test_a_dilated_encoder_with_no_dilations_is_the_same():
    dilated = DilatedEncoder(INPUT, num_channels=8, mid_channels=4, dilations=())
    encoder = make_encoder()
    dilated.load_state_dict(encoder.state_dict())  # every name, and no other
    feature = torch.randn(2, 6, 4, 4)
    assert torch.equal(encoder(feature), dilated(feature))


def test_weights_start_as_in_a_feature_pyramid():
    encoder = make_encoder()
    torch.manual_seed(0)
    convs = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3)
    for ours, conv in zip((encoder.lateral_conv, encoder.fpn_conv), convs, strict=True):
        c2_xavier_fill(conv)
        assert torch.equal(ours.weight, conv.weight)
        assert not ours.bias.any()
