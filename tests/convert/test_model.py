"""Weights that do not fit the model of the config."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.modeling import build_model

from tests.convert.checkpoints import CHANNELS, refused, save, small_yolof
from yolof_d2.config import build_cfg
from yolof_d2.convert.__main__ import main


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


def test_a_missing_weight_of_ours_is_named(tmp_path, caplog):
    weights = dict(small_yolof().state_dict())
    del weights["encoder.fpn_norm.running_mean"]
    source = save({"model": weights}, tmp_path / "ours.pth")
    assert refused(source, tmp_path / "theirs.pth", "--to", "mmdet")
    assert "missing: encoder.fpn_norm.running_mean" in caplog.text
    assert not (tmp_path / "theirs.pth").exists()


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


def test_a_resnet_with_another_stem_is_refused(tmp_path, caplog):
    source = save(timm.create_model("resnet50d").state_dict(), tmp_path / "theirs.pth")
    assert main([str(source), str(tmp_path / "ours.pth")]) == 1
    assert "stem.conv1.weight is missing" in caplog.text
    assert "without a place: conv1.0.weight" in caplog.text
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {},
            ["MODEL.YOLOF.NUM_CLASSES", 80],
            "decoder.cls_score.weight is (15, 16, 3, 3) (3 classes), "
            "the model's is (400, 16, 3, 3) (80 classes)",
        ),
        (
            {"neck.fpn_norm.bias": torch.zeros(CHANNELS + 1)},
            [],
            "encoder.fpn_norm.bias is (17,), the model's is (16,)",
        ),
        ({}, ["MODEL.RESNETS.DEPTH", 18], "RES2_OUT_CHANNELS"),
        ({}, ["MODEL.RESNETS.DEEPTH", 18], "did you mean MODEL.RESNETS.DEPTH"),
    ],
)
def test_what_does_not_fit_the_config_is_told(
    changes, options, message, mmdet_weights, config_file, tmp_path, caplog
):
    source = save(mmdet_weights | changes, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth", "--config-file", config_file, *options)
    assert message in caplog.text
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("layer2.0.downsample.1.bias", "missing: res3.0.shortcut.norm.bias (layer2.0.downsample.1"),
        ("layer3.1.", "no ResNet of Detectron2's has (2, 2, 1, 2) blocks"),
    ],
)
def test_an_incomplete_resnet_is_refused(missing, message, resnet18, tmp_path, caplog):
    weights = {k: v for k, v in resnet18.state_dict().items() if not k.startswith(missing)}
    assert refused(save(weights, tmp_path / "theirs.pth"), tmp_path / "ours.pth")
    assert message in caplog.text
