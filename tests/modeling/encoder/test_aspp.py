from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.encoder import ASPPEncoder

INPUT = ShapeSpec(channels=6, stride=32)


def make_encoder(dilations=(1, 2, 3), **options) -> ASPPEncoder:
    torch.manual_seed(0)
    return ASPPEncoder(INPUT, num_channels=8, dilations=dilations, **options)


def test_it_joins_a_point_three_dilations_and_the_mean_of_the_image():
    encoder = make_encoder((1, 2, 3), norm="")
    weights = {key: value for key, value in encoder.state_dict().items() if "weight" in key}
    assert weights.keys() == {
        *(f"aspp.convs.{i}.weight" for i in range(4)),
        *("aspp.convs.4.1.weight", "aspp.project.weight"),
    }
    point, *dilated, mean, project = weights.values()
    feature = torch.randn(2, 6, 7, 9)
    branches = [F.conv2d(feature, point).relu()]
    for weight, dilation in zip(dilated, (1, 2, 3), strict=True):
        branches.append(F.conv2d(feature, weight, padding=dilation, dilation=dilation).relu())
    pooled = torch.einsum("nc,oc->no", feature.mean((2, 3)), mean[..., 0, 0]).relu()
    branches.append(pooled[..., None, None].expand(-1, -1, 7, 9))
    expected = F.conv2d(torch.cat(branches, dim=1), project).relu()
    assert expected.any()
    torch.testing.assert_close(encoder(feature), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_a_convolution_has_a_bias_where_no_norm_follows(norm):
    encoder = ASPPEncoder(INPUT, num_channels=32, dilations=(1, 2, 3), norm=norm)
    convs = [f"aspp.convs.{i}" for i in range(4)] + ["aspp.project"]
    with_bias = {key for key in encoder.state_dict() if key.endswith("bias") and "norm" not in key}
    assert with_bias == {f"{key}.bias" for key in ["aspp.convs.4.1", *([] if norm else convs)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": [2, 4]}, r"ASPP.DILATIONS must be exactly three .*, got \[2, 4\]"),
        ({"dilations": []}, r"ASPP.DILATIONS must be exactly three .*, got \[\]"),
        ({"dilations": [0, 2, 4]}, r"1 or more each, got \[0, 2, 4\]"),
        ({"norm": "BatchNorm"}, "unknown NORM 'BatchNorm'"),
        ({"norm": "GN"}, "NORM 'GN' cannot take 8 channels"),
        ({"activation": "relu"}, "unknown ACTIVATION 'relu'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**options)
