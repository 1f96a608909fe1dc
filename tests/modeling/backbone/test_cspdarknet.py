from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn
from torch.nn import functional as F

from tests.modeling.images import make_image, randomise, train_step
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import CSPDarkNet

# The layer table of the paper's Table 3 model: stage, residual blocks, and channels at a stem of 32
# of input, output, inside either branch, and between the two convolutions of a block.
TABLE = [
    ("layer1", 1, 32, 64, 64, 32),
    ("layer2", 2, 64, 128, 64, 64),
    ("layer3", 8, 128, 256, 128, 128),
    ("layer4", 8, 256, 512, 256, 256),
    ("layer5", 4, 512, 1024, 512, 512),
]
ALL = ["stem", "res1", "res2", "res3", "res4", "res5"]


def make(stem_channels: int = 4, **options) -> CSPDarkNet:
    torch.manual_seed(0)
    model = CSPDarkNet(stem_channels=stem_channels, **options)
    randomise(model)
    return model


def layers_of_the_table() -> dict[str, tuple[str, int, int, int]]:
    """Convolution: its norm, and its channels in, channels out and kernel size."""
    layers = {"conv1": ("bn1", 3, 32, 3)}
    for stage, num_blocks, c_in, c_out, width, mid in TABLE:
        transitions = {
            "base_layer": (c_in, c_out, 3),
            "partial_transition1": (c_out, width, 1),
            "stage_layers.0.downsample": (c_out, width, 1),
            "partial_transition2": (width, width, 1),
            "fuse_transition": (2 * width, c_out, 1),
        }
        for name, sizes in transitions.items():
            layers[f"{stage}.{name}.0"] = (f"{stage}.{name}.1", *sizes)
        for i in range(num_blocks):
            block = f"{stage}.stage_layers.{i}"
            layers[f"{block}.conv1"] = (f"{block}.bn1", width, mid, 1)
            layers[f"{block}.conv2"] = (f"{block}.bn2", mid, width, 3)
    return layers


def test_names_and_shapes_of_the_weights_are_those_of_the_public_checkpoints():
    expected = {}
    for conv, (norm, c_in, c_out, kernel) in layers_of_the_table().items():
        expected[f"{conv}.weight"] = (c_out, c_in, kernel, kernel)
        for values in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{norm}.{values}"] = (c_out,)
        expected[f"{norm}.num_batches_tracked"] = ()
    with torch.device("meta"):
        weights = CSPDarkNet().state_dict()
    assert {name: tuple(value.shape) for name, value in weights.items()} == expected


def test_the_whole_model_has_the_published_number_of_parameters(cfg):
    # OpenVINO's model zoo: 48.228 M for the converted model, where norms are folded into
    # convolutions, so that each has weights and one bias per channel.
    cfg.MODEL.BACKBONE.NAME = "build_cspdarknet_backbone"
    cfg.MODEL.CSPDARKNET.RES5_DILATION = 2
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64, 128, 256, 512]]
    node = cfg.MODEL.YOLOF
    node.NUM_CLASSES = 80
    node.ENCODER.DILATED.update(
        NUM_CHANNELS=512, MID_CHANNELS=128, DILATIONS=[1, 2, 3, 4, 5, 6, 7, 8]
    )
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    total = sum(conv.weight.numel() + conv.out_channels for conv in convs)
    assert total / 1e6 == pytest.approx(48.228, abs=5e-4)


# The oracle: plain functions over the state dict.


def conv_norm_mish(
    x: Tensor, w: dict[str, Tensor], conv: str, norm: str, stride: int = 1, dilation: int = 1
) -> Tensor:
    kernel = w[f"{conv}.weight"]
    padding = {1: 0, 3: dilation}[kernel.shape[-1]]
    x = F.conv2d(x, kernel, None, stride, padding, dilation)
    mean, var, scale, shift = (
        w[f"{norm}.{name}"].view(-1, 1, 1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = (x - mean) / (var + 1e-4).sqrt() * scale + shift
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def slow_forward(images: Tensor, weights: dict[str, Tensor], res5_dilation: int) -> dict:
    w = {name: value.double() for name, value in weights.items()}
    x = conv_norm_mish(images.double(), w, "conv1", "bn1")
    features = {"stem": x}
    for number, (stage, num_blocks, *_) in enumerate(TABLE, start=1):
        dilation = res5_dilation if number == 5 else 1

        def transition(x: Tensor, name: str, *options: int, stage: str = stage) -> Tensor:
            return conv_norm_mish(x, w, f"{stage}.{name}.0", f"{stage}.{name}.1", *options)

        x = transition(x, "base_layer", 2 if dilation == 1 else 1, dilation)
        shallow = transition(x, "partial_transition1")
        deep = transition(x, "stage_layers.0.downsample")
        for i in range(num_blocks):
            block = f"{stage}.stage_layers.{i}"
            inner = conv_norm_mish(deep, w, f"{block}.conv1", f"{block}.bn1")
            inner = conv_norm_mish(inner, w, f"{block}.conv2", f"{block}.bn2", 1, dilation)
            deep = deep + inner
        deep = transition(deep, "partial_transition2")
        x = transition(torch.cat([deep, shallow], dim=1), "fuse_transition")
        features[f"res{number}"] = x
    return features


@pytest.mark.parametrize("freeze_at", [0, 6])
@pytest.mark.parametrize("res5_dilation", [1, 2])
def test_features_equal_those_of_plain_functions_over_the_state_dict(res5_dilation, freeze_at):
    source = make(res5_dilation=res5_dilation).double()
    model = make(out_features=ALL, res5_dilation=res5_dilation, freeze_at=freeze_at).double()
    model.load_state_dict(source.state_dict(), strict=True)
    images = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    with torch.no_grad():
        features = model.eval()(images)
    expected = slow_forward(images, source.state_dict(), res5_dilation)
    assert list(features) == ALL
    for name in ALL:
        torch.testing.assert_close(features[name], expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("res5_dilation", [1, 2])
@pytest.mark.parametrize("size", [(64, 96), (1, 1), (33, 65), (31, 127)])
def test_images_of_any_size_give_one_cell_per_begun_stride(size, res5_dilation):
    model = make(out_features=ALL, res5_dilation=res5_dilation).eval()
    assert model.size_divisibility == 0
    features, shapes = model(torch.randn(2, 3, *size)), model.output_shape()
    strides = [1, 2, 4, 8, 16, 32 // res5_dilation]
    channels = [4, 8, 16, 32, 64, 128]
    assert [shapes[name].stride for name in ALL] == strides
    assert [shapes[name].channels for name in ALL] == channels
    for name, stride, width in zip(ALL, strides, channels, strict=True):
        cells = [math.ceil(side / stride) for side in size]
        assert features[name].shape == (2, width, *cells)


@pytest.mark.parametrize("out_features", [["stem"], ["res2"], ["res4", "res1"], ["res5"]])
def test_only_the_stages_that_are_needed_are_built(out_features):
    model = make(out_features=out_features)
    features = model(torch.randn(2, 3, 64, 64))
    assert list(features) == list(model.output_shape()) == out_features
    sum(feature.sum() for feature in features.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    deepest = max(ALL.index(name) for name in out_features)
    stages = {name for name, _ in model.named_children() if name.startswith("layer")}
    assert stages == {f"layer{number}" for number in range(1, deepest + 1)}


@pytest.mark.parametrize("freeze_at", range(8))
def test_frozen_parts_keep_weights_and_statistics_and_the_others_learn(freeze_at):
    parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "layer5"]
    frozen = parts[: freeze_at + 1] if freeze_at else []
    model = make(freeze_at=freeze_at).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained:
        model(torch.randn(2, 3, 64, 64))["res5"].square().mean().backward()
        torch.optim.SGD(trained, lr=1.0).step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert {name.split(".")[0] for name in changed} == set(parts) - set(frozen)
    for name, layer in model.named_modules():
        if hasattr(layer, "running_mean"):
            is_frozen = isinstance(layer, FrozenBatchNorm2d)
            assert is_frozen == (name.split(".")[0] in frozen)


def test_weights_start_with_the_variance_that_keeps_gradients_as_large():
    for name, layer in make(16).named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            kernel = layer.kernel_size[0]
            expected = math.sqrt(2 / (layer.out_channels * kernel**2))  # He et al., 2015
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_batch_norms_have_the_momentum_of_the_public_model():
    model = make().train()
    old = model.bn1.running_mean.clone()
    images = torch.randn(2, 3, 32, 32)
    mean = model.conv1(images).mean((0, 2, 3))
    model(images)
    torch.testing.assert_close(model.bn1.running_mean, 0.97 * old + 0.03 * mean)


def test_a_yolof_on_it_is_built_from_the_config_and_trains(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_cspdarknet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 3
    cfg.MODEL.CSPDARKNET.update(
        STEM_OUT_CHANNELS=2, OUT_FEATURES=["res5"], NORM="BN", RES5_DILATION=2
    )
    model = build_model(cfg)
    assert isinstance(model.backbone, CSPDarkNet)
    assert model.backbone.output_shape() == {"res5": ShapeSpec(channels=64, stride=16)}
    train_step(model, [make_image(50, 70, [(5, 5, 40, 40)])] * 2)
    with_grad = {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in with_grad} == {"layer3", "layer4", "layer5"}


def test_the_number_of_input_channels_follows_the_pixel_mean(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_cspdarknet_backbone"
    cfg.MODEL.CSPDARKNET.STEM_OUT_CHANNELS = 4
    cfg.MODEL.PIXEL_MEAN = [0.0]
    assert build_backbone(cfg)(torch.rand(2, 1, 32, 32))["res5"].shape == (2, 128, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": ["res6"]}, r"OUT_FEATURES must name one or more of stem, res1, .*'res6'"),
        ({"out_features": []}, r"OUT_FEATURES must name one or more of stem, res1, .*got \[\]"),
        ({"res5_dilation": 4}, "RES5_DILATION must be 1 or 2, got 4"),
        ({"stem_channels": 0}, "STEM_OUT_CHANNELS must be 1 or more, got 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"MODEL.CSPDARKNET.{message}"):
        make(**options)


@pytest.mark.parametrize("norm", ["GN", "Batch"])
def test_an_impossible_norm_is_refused(norm):
    with pytest.raises(ConfigError, match=f"NORM '{norm}'"):
        make(norm=norm)
