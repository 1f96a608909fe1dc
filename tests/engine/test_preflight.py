"""Tell before anything starts that a run would stop."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import timm
import torch

from yolof_d2.data import resolve_datasets
from yolof_d2.engine import Launch, preflight
from yolof_d2.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("overrides", "launch", "parts"),
    [
        (["MODEL.DEVICE", "cuda"], {}, ["MODEL.DEVICE cpu", "no GPU"]),
        (["MODEL.DEVICE", "cuda"], {"ranks": 4, "ranks_here": 4}, ["--num-gpus is 4", "sees 2"]),
        (["SOLVER.IMS_PER_BATCH", "6"], {"ranks": 4}, ["IMS_PER_BATCH is 6", "4 ranks"]),
        (["SOLVER.IMS_PER_BATCH", "6"], {"ranks": 4, "ranks_here": 2}, ["4 ranks"]),
        (["SOLVER.IMS_PER_BATCH", "1"], {"ranks": 2}, ["IMS_PER_BATCH is 1", "2 ranks"]),
        ([], {"eval_only": True}, ["--eval-only", "MODEL.WEIGHTS", "--resume"]),
        ([], {"eval_only": True, "resume": True}, ["--eval-only", "OUTPUT_DIR"]),
        (["MODEL.WEIGHTS", "no/such.pkl"], {}, ["MODEL.WEIGHTS", "'no/such.pkl'"]),
    ],
)
def test_what_would_stop_every_rank_is_said_before_any_starts(
    make_cfg, monkeypatch, overrides, launch, parts
):
    count = 2 if "ranks_here" in launch else 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        preflight(make_cfg(*overrides), Launch(**launch))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("overrides", "launch"),
    [
        ([], {}),
        (["SOLVER.IMS_PER_BATCH", "6"], {"ranks": 6, "ranks_here": 2}),
        (["SOLVER.IMS_PER_BATCH", "3", "MODEL.WEIGHTS", __file__], {"ranks": 2, "eval_only": True}),
        (["MODEL.WEIGHTS", "detectron2://x.pkl"], {}),
        (["MODEL.DEVICE", "cuda"], {"here": False}),
    ],
)
def test_a_launch_that_can_work_is_let_through(make_cfg, monkeypatch, overrides, launch):
    def check_datasets(_, *, skip_train):
        checked.append(skip_train)

    checked: list[bool] = []
    module = importlib.import_module("yolof_d2.engine.preflight")
    monkeypatch.setattr(module, "check_datasets", check_datasets)
    cfg = make_cfg(*overrides)
    before = cfg.dump()
    preflight(cfg, Launch(**launch))
    assert cfg.dump() == before
    # Data are looked at where it trains; training data where they are needed.
    assert checked == [launch.get("eval_only", False)] * launch.get("here", True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["MODEL.YOLOF.MATCHER.NAME", "Uniform"], r"MATCHER.NAME is 'Uniform'.*UniformMatcher"),
        (["MODEL.YOLOF.ENCODER.DILATED.DILATIONS", "[0]"], r"DILATIONS must be 1 or more"),
        (["MODEL.BACKBONE.NAME", "no"], r"MODEL\.BACKBONE\.NAME is 'no'"),
    ],
)
def test_a_model_that_cannot_be_built_is_told_before_the_launch(make_cfg, overrides, said):
    cfg = make_cfg(*overrides)
    for _ in range(2):  # one that failed is not taken for one that can be built
        with pytest.raises(ConfigError, match=said):
            preflight(cfg, Launch())


def test_only_where_it_trains_are_the_data_checked(make_cfg, tmp_path):
    cfg = make_cfg()
    document = json.loads(Path(cfg.DATASETS.TRAIN_JSON).read_text())
    document["annotations"][0]["bbox"] = [0, 0, "wide", 4]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document))
    cfg.DATASETS.TRAIN_JSON = str(bad)
    resolve_datasets(cfg)
    preflight(cfg, Launch(here=False))
    with pytest.raises(DataError, match="bbox"):
        preflight(cfg, Launch())


def test_the_trial_build_downloads_nothing_and_leaves_the_config_alone(make_cfg, monkeypatch):
    create, asked = timm.create_model, []

    def record(*args, pretrained=False, **options):
        asked.append(pretrained)
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", record)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.PRETRAINED", "True")
    cfg.freeze()
    preflight(cfg, Launch())
    assert asked and not any(asked)
    assert cfg.MODEL.TIMM.PRETRAINED and cfg.is_frozen()


def test_a_resumed_run_needs_no_weights_file(make_cfg, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg = make_cfg("MODEL.WEIGHTS", "gone.pkl")
    preflight(cfg, Launch(resume=True))
    preflight(cfg, Launch(resume=True, eval_only=True))
    with pytest.raises(ConfigError, match=r"gone\.pkl"):
        preflight(cfg, Launch())
