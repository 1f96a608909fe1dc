"""Converted weights compute what they computed in the project that they come from."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from tests.convert.checkpoints import (
    CHANNELS,
    CLASSES,
    DILATIONS,
    Weights,
    backbone_counters,
    convert,
    equal,
    loads_wholly,
    save,
    small_yolof,
)
from tests.modeling.images import randomise
from yolof_d2.config import build_cfg
from yolof_d2.convert.formats import translate

RESNETS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": torchvision.models.resnet18,
    "torchvision resnet50": torchvision.models.resnet50,
    "torchvision resnext50": lambda: ResNet(Bottleneck, [3, 4, 6, 3], groups=4, width_per_group=8),
    "timm resnet34": lambda: timm.create_model("resnet34"),
}


def features_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """res2 to res5 of torchvision's or timm's ResNet."""
    activation = model.relu if hasattr(model, "relu") else model.act1
    feature = model.maxpool(activation(model.bn1(model.conv1(images))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        feature = stage(feature)
        features.append(feature)
    return features


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_gives_the_same_features_with_the_lines_that_the_command_prints(
    name, tmp_path, capsys
):
    torch.manual_seed(0)
    theirs = RESNETS[name]().eval()
    randomise(theirs)
    source = save(theirs.state_dict(), tmp_path / "theirs.pth")
    convert(source, tmp_path / "ours.pth", "--from", name.split()[0])

    cfg = build_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(capsys.readouterr().out)))
    assert Path(cfg.MODEL.WEIGHTS) == tmp_path / "ours.pth"
    assert cfg.INPUT.FORMAT == "RGB" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    ours = nn.Module()
    ours.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert loads_wholly(ours, tmp_path / "ours.pth")

    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = features_of(theirs, images), ours.backbone(images).values()
    for wanted, feature in zip(expected, got, strict=True):
        assert torch.allclose(feature, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_a_resnet_comes_back_as_it_was_from_behind_any_prefix(prefix, resnet18, tmp_path, caplog):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    convert(source, tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    detector = {f"{prefix}{name}": tensor for name, tensor in ours.items()}
    detector["encoder.lateral_conv.weight"] = torch.zeros(1)
    detector["teacher.stem.conv1.weight"] = torch.zeros(1)  # a second stem
    save({"model": detector}, tmp_path / "detector.pth")
    convert(tmp_path / "detector.pth", tmp_path / "back.pth", "--to", "torchvision")
    assert "left out: 1, no part of a ResNet (encoder.lateral_conv.weight)" in caplog.text
    assert caplog.text.count("NOT PLACED: 1,") == 1
    assert "\n    teacher.stem.conv1.weight" in caplog.text

    back = torch.load(tmp_path / "back.pth")
    lost = ("fc.weight", "fc.bias", "num_batches_tracked")
    theirs = resnet18.state_dict().items()
    assert equal(back, {name: tensor for name, tensor in theirs if not name.endswith(lost)})
    headless = torchvision.models.resnet18()
    headless.fc = nn.Identity()
    headless.load_state_dict(back, strict=True)


def mmdet_forward(weights: Weights, images: Tensor) -> tuple[Tensor, Tensor]:
    """mmdetection's YOLOF, caffe style, in inference: logits (N, R, K) and deltas (N, R, 4)."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)

    def norm(name: str, x: Tensor) -> Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{kind}"] for kind in kinds))

    def conv_module(name: str, x: Tensor, **options: int) -> Tensor:
        return norm(f"{name}.bn", conv(f"{name}.conv", x, **options)).relu()

    x = norm("backbone.bn1", conv("backbone.conv1", images, stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        for index in range(num_blocks):
            block, stride = f"backbone.layer{stage + 1}.{index}", 2 if stage and not index else 1
            shortcut = x
            if index == 0:
                shortcut = conv(f"{block}.downsample.0", x, stride=stride)
                shortcut = norm(f"{block}.downsample.1", shortcut)
            x = norm(f"{block}.bn1", conv(f"{block}.conv1", x, stride=stride)).relu()
            x = norm(f"{block}.bn2", conv(f"{block}.conv2", x, padding=1)).relu()
            x = (norm(f"{block}.bn3", conv(f"{block}.conv3", x)) + shortcut).relu()
    x = norm("neck.lateral_norm", conv("neck.lateral_conv", x))
    x = norm("neck.fpn_norm", conv("neck.fpn_conv", x, padding=1))
    for index, dilation in enumerate(DILATIONS):
        block = f"neck.dilated_encoder_blocks.{index}"
        residual = conv_module(f"{block}.conv1", x)
        residual = conv_module(f"{block}.conv2", residual, padding=dilation, dilation=dilation)
        x = x + conv_module(f"{block}.conv3", residual)
    cls_feature = box_feature = x
    for index in range(2):
        cls_feature = conv_module(f"bbox_head.cls_subnet.{index}", cls_feature, padding=1)
    for index in range(4):
        box_feature = conv_module(f"bbox_head.bbox_subnet.{index}", box_feature, padding=1)

    def flat(name: str, feature: Tensor, width: int) -> Tensor:
        prediction = conv(f"bbox_head.{name}", feature, padding=1)
        return prediction.permute(0, 2, 3, 1).reshape(len(images), -1, width)

    objectness = flat("object_pred", box_feature, 1)
    classes = flat("cls_score", cls_feature, CLASSES)
    logits = classes + objectness - torch.log(1 + classes.exp() + objectness.exp())
    return logits, flat("bbox_pred", box_feature, 4)


def assert_same_predictions(model: nn.Module, mmdet: Weights) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (feature,) = model.backbone(images).values()
        got = model.decoder(model.encoder(feature))
        expected = mmdet_forward(mmdet, images)
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.1  # something to be equal in
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def as_v2(weights: Weights) -> dict:
    return {"meta": {"epoch": 12, "CLASSES": ("a",)}, "state_dict": weights, "optimizer": {}}


def as_v3(weights: Weights) -> dict:
    buffers = {
        "data_preprocessor.mean": torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1),
        "data_preprocessor.std": torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1),
    }
    state_dict = collections.OrderedDict(buffers | weights)
    return {"meta": {"mmengine_version": "0.10"}, "state_dict": state_dict, "message_hub": {}}


def as_ddp(weights: Weights) -> dict:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("wrap", [as_v2, as_v3, as_ddp])
def test_mmdet_weights_predict_here_what_they_predict_there(
    wrap, mmdet_weights, config_file, tmp_path
):
    source = save(wrap(mmdet_weights), tmp_path / "epoch_12.pth")
    convert(source, tmp_path / "ours.pth", "--config-file", config_file)
    model = small_yolof()
    assert loads_wholly(model, tmp_path / "ours.pth")
    assert_same_predictions(model, mmdet_weights)
    if wrap is as_v3:
        assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
        assert model.pixel_std.flatten().tolist() == [4, 5, 6]


def test_our_weights_predict_in_mmdet_what_they_predict_here(mmdet_weights, tmp_path):
    torch.manual_seed(0)
    model = small_yolof()
    randomise(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    source = save({"model": model.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    convert(source, tmp_path / "theirs.pth", "--to", "mmdet")
    content = torch.load(tmp_path / "theirs.pth")
    assert content.keys() == {"meta", "state_dict"}

    theirs = content["state_dict"]
    assert theirs.keys() == mmdet_weights.keys() - backbone_counters(mmdet_weights)
    assert all(theirs[name].shape == mmdet_weights[name].shape for name in theirs)
    assert_same_predictions(model, theirs)


def test_mmdet_weights_come_back_as_they_were(mmdet_weights, tmp_path):
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    convert(source, tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "back.pth", "--to", "mmdet")
    back = torch.load(tmp_path / "back.pth")["state_dict"]
    assert equal(back, {name: mmdet_weights[name] for name in back})
    assert mmdet_weights.keys() - back.keys() == backbone_counters(mmdet_weights) != set()


def test_biases_that_an_mmdet_file_does_have_are_kept(mmdet_weights, tmp_path):
    bias = torch.rand(CHANNELS)
    source = save(mmdet_weights | {"bbox_head.bbox_subnet.3.conv.bias": bias}, tmp_path / "a.pth")
    convert(source, tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["decoder.bbox_subnet.9.bias"], bias)
    assert not ours["decoder.bbox_subnet.6.bias"].any()


def test_half_precision_stays_half(mmdet_weights, tmp_path):
    for name, tensor in mmdet_weights.items():
        mmdet_weights[name] = tensor.half() if tensor.is_floating_point() else tensor
    convert(save(mmdet_weights, tmp_path / "theirs.pth"), tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16, torch.int64}
    assert ours["decoder.bbox_subnet.9.bias"].dtype == torch.float16


def test_cvpods_weights_keep_their_names_and_lose_their_anchors(tmp_path, caplog):
    torch.manual_seed(0)
    model = small_yolof()
    randomise(model)
    anchors = {"anchor_generator.cell_anchors.0": torch.zeros(5, 4)}
    weights = model.state_dict() | anchors
    source = save({"model": {f"module.{name}": weights[name] for name in weights}}, tmp_path / "a")
    convert(source, tmp_path / "ours.pth")
    assert "left out: 1, computed from the config (anchor_generator" in caplog.text
    assert equal(torch.load(tmp_path / "ours.pth")["model"], dict(model.state_dict()))
    assert loads_wholly(small_yolof(), tmp_path / "ours.pth")


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_a_numbered_rule_is_undone_by_its_reverse(first, second):
    rule = ("a.{n}.b{m}.*", "c.{3n+1}.{m+2}.*")
    name = f"a.{first}.b{second}.weight"
    renamed = translate(name, [rule])
    assert renamed == f"c.{3 * first + 1}.{second + 2}.weight"
    assert translate(renamed, [rule[::-1]]) == name


@pytest.mark.parametrize("name", ["c.0.2.x", "c.2.2.x", "c.1.1.x", "c.1.2", "cc.1.2.x", "c-1.2.x"])
def test_a_rule_does_not_fit_what_it_cannot_have_made(name):
    assert translate(name, [("c.{3n+1}.{m+2}.*", "a.{n}.b{m}.*")]) is None
