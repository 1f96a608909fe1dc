"""Conversion of weights, against the projects or a forward pass that reads their names."""

from __future__ import annotations

import collections
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from yolof_d2.config import build_cfg
from yolof_d2.convert.__main__ import main
from yolof_d2.convert.formats import translate

ROOT = Path(__file__).parents[2]
Weights = dict[str, Tensor]

STEM, WIDTH, OUT = 4, 4, 8  # of the small ResNet-50
CHANNELS, MID, ANCHORS, CLASSES = 16, 8, 5, 3
DILATIONS = (1, 2)
SMALL_YOLOF = {
    "MODEL": {
        "DEVICE": "cpu",
        "META_ARCHITECTURE": "YOLOF",
        "BACKBONE": {"NAME": "build_resnet_backbone"},
        "RESNETS": {
            "OUT_FEATURES": ["res5"],
            "STEM_OUT_CHANNELS": STEM,
            "WIDTH_PER_GROUP": WIDTH,
            "RES2_OUT_CHANNELS": OUT,
        },
        "ANCHOR_GENERATOR": {"SIZES": [[32, 64, 128, 256, 512]], "ASPECT_RATIOS": [[1.0]]},
        "YOLOF": {
            "NUM_CLASSES": CLASSES,
            "ENCODER": {
                "DILATED": {
                    "NUM_CHANNELS": CHANNELS,
                    "MID_CHANNELS": MID,
                    "DILATIONS": list(DILATIONS),
                }
            },
        },
    }
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL_YOLOF))
    return path


def small_yolof(*overrides: str) -> nn.Module:
    cfg = build_cfg("", overrides)
    cfg.merge_from_other_cfg(CfgNode(SMALL_YOLOF))
    return build_model(cfg).eval()


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def convert(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def equal(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


class RecordingCheckpointer(DetectionCheckpointer):
    """Keeps what Detectron2 would warn of."""

    def _log_incompatible_keys(self, incompatible):
        self.incompatible = incompatible


def load(model: nn.Module, path: Path):
    """Load as train_net.py does; returns the missing, unexpected and wrongly shaped keys."""
    checkpointer = RecordingCheckpointer(model)
    checkpointer.load(str(path), checkpointables=[])
    return checkpointer.incompatible


def loads_wholly(model: nn.Module, path: Path) -> bool:
    return not any(load(model, path))


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give all norms and biases values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            positive = name.endswith(("running_var", "weight"))
            tensor.uniform_(
                0.5 if positive else -0.5, 1.5 if positive else 0.5, generator=generator
            )


# ResNets of torchvision and timm


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
        for expected, got in zip(
            features_of(theirs, images), ours.backbone(images).values(), strict=True
        ):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    randomise(model)
    return model


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
    expected = {
        name: tensor
        for name, tensor in resnet18.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    assert equal(back, expected)
    headless = torchvision.models.resnet18()
    headless.fc = nn.Identity()
    headless.load_state_dict(back, strict=True)


@pytest.mark.parametrize("meta_architecture", ["YOLOF", "RetinaNet"])
def test_train_net_finds_every_weight_of_a_converted_resnet(meta_architecture, resnet18, tmp_path):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    convert(source, tmp_path / "ours.pth")
    name = {"YOLOF": "build_resnet_backbone", "RetinaNet": "build_retinanet_resnet_fpn_backbone"}
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", meta_architecture]
    overrides += ["MODEL.BACKBONE.NAME", name[meta_architecture], "MODEL.RESNETS.DEPTH", "18"]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.OUT_FEATURES"]
    if meta_architecture == "YOLOF":
        overrides += ["['res5']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"]
    else:
        overrides += ["['res3','res4','res5']", "MODEL.FPN.IN_FEATURES", "['res3','res4','res5']"]
    model = build_model(build_cfg("", overrides))
    incompatible = load(model, tmp_path / "ours.pth")
    assert not incompatible.unexpected_keys and not incompatible.incorrect_shapes
    backbone = [key for key in incompatible.missing_keys if "stem." in key or ".res" in key]
    assert incompatible.missing_keys and backbone == []


def test_a_resnet_with_another_stem_is_refused(tmp_path, caplog):
    source = save(timm.create_model("resnet50d").state_dict(), tmp_path / "theirs.pth")
    assert main([str(source), str(tmp_path / "ours.pth")]) == 1
    assert "stem.conv1.weight is missing" in caplog.text
    assert "without a place: conv1.0.weight" in caplog.text
    assert not (tmp_path / "ours.pth").exists()


# mmdetection


class MMDetWeights(dict):
    """Random weights under the names of mmdetection's YOLOF; layers are added one by one."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=self.generator)

    def conv(self, name: str, out: int, channels: int, size: int, *, bias: bool = False) -> None:
        bound = (3 / (channels * size**2)) ** 0.5  # keeps the spread of the features
        self[f"{name}.weight"] = self.uniform(out, channels, size, size, low=-bound, high=bound)
        if bias:
            self[f"{name}.bias"] = self.uniform(out, low=-0.5, high=0.5)

    def norm(self, name: str, channels: int) -> None:
        for kind, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5)):
            self[f"{name}.{kind}"] = self.uniform(channels, low=low, high=low + 1)
        self[f"{name}.running_var"] = self.uniform(channels, low=0.5, high=1.5)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv_module(self, name: str, out: int, channels: int, size: int) -> None:
        self.conv(f"{name}.conv", out, channels, size)
        self.norm(f"{name}.bn", out)


@pytest.fixture
def mmdet_weights() -> Weights:
    weights = MMDetWeights()
    weights.conv("backbone.conv1", STEM, 3, 7)
    weights.norm("backbone.bn1", STEM)
    channels = STEM
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        inner, out = WIDTH * 2**stage, OUT * 2**stage
        for index in range(num_blocks):
            block = f"backbone.layer{stage + 1}.{index}"
            for number, (height, width, size) in enumerate(
                ((inner, channels, 1), (inner, inner, 3), (out, inner, 1)), start=1
            ):
                weights.conv(f"{block}.conv{number}", height, width, size)
                weights.norm(f"{block}.bn{number}", height)
            if index == 0:
                weights.conv(f"{block}.downsample.0", out, channels, 1)
                weights.norm(f"{block}.downsample.1", out)
            channels = out
    weights.conv("neck.lateral_conv", CHANNELS, channels, 1, bias=True)
    weights.norm("neck.lateral_norm", CHANNELS)
    weights.conv("neck.fpn_conv", CHANNELS, CHANNELS, 3, bias=True)
    weights.norm("neck.fpn_norm", CHANNELS)
    for index in range(len(DILATIONS)):
        block = f"neck.dilated_encoder_blocks.{index}"
        weights.conv_module(f"{block}.conv1", MID, CHANNELS, 1)
        weights.conv_module(f"{block}.conv2", MID, MID, 3)
        weights.conv_module(f"{block}.conv3", CHANNELS, MID, 1)
    for tower, num_convs in (("cls", 2), ("bbox", 4)):
        for index in range(num_convs):
            weights.conv_module(f"bbox_head.{tower}_subnet.{index}", CHANNELS, CHANNELS, 3)
    for name, out in (("cls_score", CLASSES), ("bbox_pred", 4), ("object_pred", 1)):
        weights.conv(f"bbox_head.{name}", ANCHORS * out, CHANNELS, 3, bias=True)
    return dict(weights)


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

    backbone_counters = {
        name
        for name in mmdet_weights
        if name.startswith("backbone") and name.endswith("num_batches_tracked")
    }
    theirs = content["state_dict"]
    assert theirs.keys() == mmdet_weights.keys() - backbone_counters
    assert all(theirs[name].shape == mmdet_weights[name].shape for name in theirs)
    assert_same_predictions(model, theirs)


def test_mmdet_weights_come_back_as_they_were(mmdet_weights, tmp_path):
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    convert(source, tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "back.pth", "--to", "mmdet")
    back = torch.load(tmp_path / "back.pth")["state_dict"]
    assert equal(back, {name: mmdet_weights[name] for name in back})
    lost = [name for name in mmdet_weights if name not in back]
    assert lost and all(
        name.startswith("backbone.") and name.endswith(".num_batches_tracked") for name in lost
    )


def test_biases_that_an_mmdet_file_does_have_are_kept(mmdet_weights, tmp_path):
    bias = torch.rand(CHANNELS)
    source = save(mmdet_weights | {"bbox_head.bbox_subnet.3.conv.bias": bias}, tmp_path / "a.pth")
    convert(source, tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["decoder.bbox_subnet.9.bias"], bias)
    assert not ours["decoder.bbox_subnet.6.bias"].any()


def test_half_precision_stays_half(mmdet_weights, tmp_path):
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in mmdet_weights.items()
    }
    convert(save(halves, tmp_path / "theirs.pth"), tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16, torch.int64}
    assert ours["decoder.bbox_subnet.9.bias"].dtype == torch.float16


def test_every_name_of_the_source_is_placed_or_reported(mmdet_weights, tmp_path, caplog, capsys):
    names = ("ema_backbone_conv1_weight", "neck.new.weight", "bbox_head.cls_score.scale")
    extra = {name: torch.zeros(1) for name in names}
    source = save(as_v2(mmdet_weights | extra), tmp_path / "epoch_12.pth")
    convert(source, tmp_path / "ours.pth")
    counters = [name for name in mmdet_weights if name.endswith("num_batches_tracked")]
    counters = [name for name in counters if name.startswith("backbone.")]
    assert f": {len(mmdet_weights) - len(counters)} weights" in caplog.text
    assert f"left out: {len(counters)}, batch counters" in caplog.text
    assert "left out: no weights (meta, optimizer)" in caplog.text
    assert "zeros: 12 biases" in caplog.text
    report = caplog.text[caplog.text.index("NOT PLACED: 3,") :]
    assert all(f"\n    {name}" in report for name in extra)
    output = capsys.readouterr().out
    assert "DILATIONS" not in output and "ANCHOR_GENERATOR" not in output  # no weight tells them
    lines = yaml.safe_load(output)
    assert lines["MODEL"]["YOLOF"]["NUM_CLASSES"] == CLASSES
    assert lines["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is True


# cvpods


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


def test_another_backbone_needs_its_config_file(tmp_path, caplog):
    content = yaml.safe_load(yaml.safe_dump(SMALL_YOLOF))
    content["MODEL"]["BACKBONE"]["NAME"] = "build_cspdarknet_backbone"
    content["MODEL"]["CSPDARKNET"] = {"STEM_OUT_CHANNELS": 4}
    del content["MODEL"]["RESNETS"]
    (tmp_path / "darknet.yaml").write_text(yaml.safe_dump(content))
    model = build_model(build_cfg(str(tmp_path / "darknet.yaml")))
    # Three of the names in the public files.
    assert {
        "backbone.bn1.running_mean",
        "backbone.layer5.stage_layers.0.downsample.0.weight",
        "backbone.layer2.partial_transition1.1.bias",
    } <= model.state_dict().keys()
    source = save({"model": model.state_dict()}, tmp_path / "theirs.pth")
    target = tmp_path / "ours.pth"
    assert main([str(source), str(target)]) == 1
    assert "name its config with --config-file" in caplog.text and not target.exists()
    convert(source, target, "--config-file", tmp_path / "darknet.yaml")
    assert loads_wholly(model, target)


# What cannot be converted


def refused(*words: object) -> bool:
    return main([str(word) for word in words]) == 1


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("backbone.layer3.5.bn2.running_var", "backbone.res4.5.conv2.norm.running_var"),
        ("backbone.layer2.0.downsample.0.weight", "backbone.res3.0.shortcut.weight"),
        ("neck.fpn_conv.bias", "encoder.fpn_conv.bias"),
        ("neck.dilated_encoder_blocks.1.conv1.conv.weight", "encoder.dilated_encoder_blocks.1"),
        ("bbox_head.bbox_subnet.3.conv.weight", "decoder.bbox_subnet.9.weight"),
        ("bbox_head.cls_subnet.1.bn.weight", "decoder.cls_subnet.4.weight"),
        ("bbox_head.object_pred.bias", "decoder.object_pred.bias"),
    ],
)
def test_a_missing_weight_is_named_as_here_and_there(name, ours, mmdet_weights, tmp_path, caplog):
    del mmdet_weights[name]
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert f"missing: {ours}" in caplog.text and f"({name})" in caplog.text
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_a_missing_weight_of_a_resnet_is_named(resnet18, tmp_path, caplog):
    weights = dict(resnet18.state_dict())
    del weights["layer2.0.downsample.1.bias"]
    source = save(weights, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert "missing: res3.0.shortcut.norm.bias (layer2.0.downsample.1.bias)" in caplog.text


def test_a_missing_weight_of_ours_is_named(tmp_path, caplog):
    weights = dict(small_yolof().state_dict())
    del weights["encoder.fpn_norm.running_mean"]
    source = save({"model": weights}, tmp_path / "ours.pth")
    assert refused(source, tmp_path / "theirs.pth", "--to", "mmdet")
    assert "missing: encoder.fpn_norm.running_mean" in caplog.text
    assert not (tmp_path / "theirs.pth").exists()


def test_another_number_of_classes_is_told_in_classes(mmdet_weights, config_file, tmp_path, caplog):
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    words = [source, tmp_path / "ours.pth", "--config-file", config_file]
    assert refused(*words, "MODEL.YOLOF.NUM_CLASSES", 80)
    assert "decoder.cls_score.weight is (15, 16, 3, 3) (3 classes)" in caplog.text
    assert "the model's is (400, 16, 3, 3) (80 classes)" in caplog.text
    assert not (tmp_path / "ours.pth").exists()


def test_another_shape_is_told(mmdet_weights, config_file, tmp_path, caplog):
    mmdet_weights["neck.fpn_norm.bias"] = torch.zeros(CHANNELS + 1)
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert "encoder.fpn_norm.bias is (17,), the model's is (16,)" in caplog.text


def test_blocks_that_no_resnet_has_are_told(resnet18, tmp_path, caplog):
    weights = {k: v for k, v in resnet18.state_dict().items() if not k.startswith("layer3.1.")}
    source = save(weights, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert "no ResNet of Detectron2's has (2, 2, 1, 2) blocks" in caplog.text


def test_a_config_that_cannot_be_built_is_told(mmdet_weights, config_file, tmp_path, caplog):
    source = save(mmdet_weights, tmp_path / "theirs.pth")
    words = [source, tmp_path / "ours.pth", "--config-file", config_file]
    assert refused(*words, "MODEL.RESNETS.DEPTH", 18)
    assert "RES2_OUT_CHANNELS" in caplog.text
    assert refused(*words, "MODEL.RESNETS.DEEPTH", 18)
    assert "did you mean MODEL.RESNETS.DEPTH" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.YOLOF.ENCODER.NAME", "ASPPEncoder"], "only here: encoder."),
        (["MODEL.YOLOF.DECODER.NAME", "PlainDecoder"], "there: bbox_head.object_pred.weight"),
        (
            ["MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NORM", ""],
            r"decoder.cls_subnet.0.bias has no counterpart there without a batch norm",
        ),
    ],
)
def test_a_model_that_mmdet_does_not_have_is_not_written(
    overrides, message, config_file, tmp_path, caplog
):
    model = build_model(build_cfg(str(config_file), overrides))
    source = save({"model": model.state_dict()}, tmp_path / "ours.pth")
    target = tmp_path / "theirs.pth"
    assert refused(source, target, "--to", "mmdet", "--config-file", config_file, *overrides)
    assert message in caplog.text
    assert not target.exists()


# Files


class Telltale:
    """An object that would write a file on being read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_are_read_only_on_demand(resnet18, tmp_path, caplog):
    content = {"state_dict": resnet18.state_dict(), "meta": Telltale(tmp_path / "code_ran")}
    source = save(content, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert "holds Python objects" in caplog.text and "--unsafe" in caplog.text
    assert not (tmp_path / "code_ran").exists()
    convert(source, tmp_path / "ours.pth", "--unsafe")
    assert (tmp_path / "code_ran").exists() and (tmp_path / "ours.pth").exists()


ABSENT = """
class History(dict):
    pass

class Buffer(list):
    pass

class Stamp:
    def __init__(self, *numbers):
        self.numbers = numbers

    def __reduce__(self):
        return Stamp, self.numbers, 5  # a state that is no dict

    def __setstate__(self, state):
        pass
"""


@pytest.mark.parametrize("new_format", [True, False])
def test_objects_of_packages_that_are_not_here_are_passed_over(
    new_format, resnet18, tmp_path, monkeypatch
):
    module = types.ModuleType("mmengine_like")
    exec(ABSENT, module.__dict__)
    monkeypatch.setitem(sys.modules, "mmengine_like", module)
    history = module.History(loss=module.Buffer([1, 2]))
    history.stamp = module.Stamp(1, 2)
    content = {"state_dict": resnet18.state_dict(), "message_hub": history}
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=new_format)
    monkeypatch.delitem(sys.modules, "mmengine_like")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.pth", "--unsafe")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["stem.conv1.weight"], resnet18.state_dict()["conv1.weight"])


def test_safetensors_are_read(resnet18, tmp_path):
    save_file(dict(resnet18.state_dict()), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "ours.pth", "--from", "timm")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["res5.1.conv2.norm.bias"], resnet18.state_dict()["layer4.1.bn2.bias"])


@pytest.mark.parametrize(
    "name", ["text.pth", "empty.pth", "cut.pth", "pickle.pth", "a.safetensors"]
)
def test_what_is_no_checkpoint_is_named_in_one_line(name, resnet18, tmp_path, caplog):
    path = tmp_path / name
    if name == "cut.pth":
        save(resnet18.state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "pickle.pth":
        path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    else:
        path.write_text("" if name == "empty.pth" else "<html>not found</html>")
    for flags in ([], ["--unsafe"]):
        caplog.clear()
        assert refused(path, tmp_path / "ours.pth", *flags)
        (record,) = caplog.records
        message = record.getMessage()
        assert str(path) in message and "no checkpoint that PyTorch can read" in message
        assert "weights_only" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a dict of weights"),
        ({"epoch": 1, "lr": 0.1}, "holds no weights: epoch, lr"),
        ({"a.weight": torch.zeros(1)}, r"the names (a.weight, ...) are those of no known format"),
    ],
)
def test_files_without_weights_that_we_know_are_refused(content, message, tmp_path, caplog):
    assert refused(save(content, tmp_path / "theirs.pth"), tmp_path / "ours.pth")
    assert message in caplog.text


def test_paths_that_cannot_be_are_refused(resnet18, tmp_path, caplog):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    assert refused(tmp_path / "none.pth", tmp_path / "ours.pth")
    assert "there is no file" in caplog.text and "none.pth" in caplog.text
    assert refused(source, tmp_path / "ours.pkl") and "must end in .pth" in caplog.text
    assert refused(source, source) and "are the same file" in caplog.text
    assert refused(source, source / "ours.pth") and "cannot be written" in caplog.text


def test_a_write_that_fails_leaves_what_was_there(resnet18, tmp_path, caplog, monkeypatch):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    target = tmp_path / "new folder" / "ours.pth"
    convert(source, target)
    before = target.read_bytes()

    def fail(content, stream):
        stream.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    assert refused(source, target)
    assert "no space left" in caplog.text
    assert target.read_bytes() == before and len(list(target.parent.iterdir())) == 1


def test_the_command_runs_and_its_standard_output_is_a_config(resnet18, tmp_path):
    source = save({"state_dict": resnet18.state_dict()}, tmp_path / "theirs.pth")
    done = subprocess.run(
        [sys.executable, "-m", "yolof_d2.convert", source, tmp_path / "ours.pth"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["MODEL"]["RESNETS"]["DEPTH"] == 18
    assert "ours.pth (from torchvision): 100 weights" in done.stderr
    assert "RuntimeWarning" not in done.stderr


# The rules


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
