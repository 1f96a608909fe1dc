from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from tests.convert.checkpoints import (
    CLASSES,
    SMALL_YOLOF,
    backbone_counters,
    convert,
    load,
    loads_wholly,
    refused,
    save,
)
from yolof_d2.config import build_cfg
from yolof_d2.convert.__main__ import main

ROOT = Path(__file__).parents[2]


def test_paths_that_cannot_be_are_refused(resnet18, tmp_path, caplog):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    assert refused(tmp_path / "none.pth", tmp_path / "ours.pth")
    assert "there is no file" in caplog.text and "none.pth" in caplog.text
    assert refused(source, tmp_path / "ours.pkl") and "must end in .pth" in caplog.text
    assert refused(source, source) and "are the same file" in caplog.text
    assert refused(source, source / "ours.pth") and "cannot be written" in caplog.text


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


def test_every_name_of_the_source_is_placed_or_reported(mmdet_weights, tmp_path, caplog, capsys):
    names = ("ema_backbone_conv1_weight", "neck.new.weight", "bbox_head.cls_score.scale")
    extra = {name: torch.zeros(1) for name in names}
    content = {"meta": {}, "state_dict": mmdet_weights | extra, "optimizer": {}}
    convert(save(content, tmp_path / "a.pth"), tmp_path / "ours.pth")
    counters = backbone_counters(mmdet_weights)
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


def test_another_backbone_needs_its_config_file(tmp_path, caplog):
    content = yaml.safe_load(SMALL_YOLOF)
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
