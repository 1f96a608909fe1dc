from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.engine import Trainer, check_launch
from yolof_d2.errors import ConfigError, NonFiniteLossError, TrainingStopped

CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 16, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}}
  PIXEL_STD: [57.0, 57.0, 57.0]
  YOLOF:
    ENCODER: {{DILATED: {{NUM_CHANNELS: 32, MID_CHANNELS: 16, DILATIONS: [1, 2]}}}}
    DECODER: {{IMPLICIT_OBJECTNESS: {{NUM_CLS_CONVS: 1, NUM_REG_CONVS: 1}}}}
DATASETS:
  TRAIN_JSON: {train}
  TRAIN_IMAGES: {images}
  TEST_JSON: {val}
  TEST_IMAGES: {images}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, BASE_LR: 0.01, WARMUP_ITERS: 2, MAX_ITER: 6, CHECKPOINT_PERIOD: 2}}
TEST: {{EVAL_PERIOD: 0}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SEED: 1
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    data = write_synthetic_dataset(folder, num_train=8, num_val=2, image_size=(64, 64))
    base = Path("configs/yolof_R_50_C5_1x.yaml").absolute()
    file = folder / "tiny.yaml"
    file.write_text(
        CONFIG.format(base=base, train=data.train_json, val=data.val_json, images=data.image_folder)
    )
    return str(file)


@pytest.fixture
def make_cfg(config_file, tmp_path):
    def make(*overrides: object) -> CfgNode:
        words = ["OUTPUT_DIR", str(tmp_path), *map(str, overrides)]
        cfg = build_cfg(config_file, words)
        resolve_datasets(cfg)
        return cfg

    return make


def make_trainer(cfg: CfgNode, ap: dict[int, float] | None = None) -> Trainer:
    """A trainer whose evaluation gives the AP listed for the iteration (0 where none is)."""
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.test = lambda *_: {"bbox": {"AP": (ap or {}).get(trainer.iter, 0.0)}}
    return trainer


def interrupt(trainer: Trainer, at: int) -> None:
    """Train until the start of iteration ``at``, as if the process had been stopped there."""

    class StoppedError(Exception):
        pass

    step = trainer.run_step

    def run_step():
        if trainer.iter == at:
            raise StoppedError
        step()

    trainer.run_step = run_step
    with pytest.raises(StoppedError):
        trainer.train()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


# Stopping on request


def test_a_request_stops_at_the_next_boundary_and_the_run_goes_on_from_there(make_cfg):
    trainer = make_trainer(make_cfg())
    step = trainer.run_step

    def run_step():
        if trainer.iter == 2:
            trainer.request_stop("SIGUSR2")  # in the middle of an iteration
        step()

    trainer.run_step = run_step
    with pytest.raises(TrainingStopped, match="SIGUSR2"):
        trainer.train()
    assert trainer.iter == 2
    resumed = make_trainer(make_cfg())
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert resumed.iter == resumed.max_iter


def test_a_request_in_the_last_iteration_lets_the_run_end(make_cfg):
    trainer = make_trainer(make_cfg())
    step = trainer.run_step

    def run_step():
        if trainer.iter == trainer.max_iter - 1:
            trainer.request_stop("SIGUSR2")
        step()

    trainer.run_step = run_step
    trainer.train()
    assert (Path(trainer.cfg.OUTPUT_DIR) / "summary.json").is_file()


# Optimizer


def groups(cfg: CfgNode) -> dict[str, dict]:
    """Parameter name -> its optimizer group."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = Trainer.build_optimizer(cfg, model)
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_the_backbone_learns_at_0_334_of_the_rate_and_norms_do_not_decay(make_cfg):
    cfg = make_cfg()
    model = Trainer.build_model(cfg)
    norms = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for name, _ in module.named_parameters()
    }
    found = groups(cfg)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert norms and any(name.startswith("backbone.") for name in found)
    for name, group in found.items():
        factor = 0.334 if name.startswith("backbone.") else 1.0
        assert group["lr"] == pytest.approx(0.01 * factor), name
        assert group["weight_decay"] == (0.0 if name in norms else 1e-4), name
        assert (group["momentum"], group["nesterov"]) == (0.9, False), name


def test_detectron2s_own_solver_keys_keep_their_effect(make_cfg):
    found = groups(
        make_cfg(
            *("SOLVER.BIAS_LR_FACTOR", 2.0),
            *("SOLVER.WEIGHT_DECAY_BIAS", 0.5),
            *("SOLVER.NESTEROV", True),
            *("SOLVER.MOMENTUM", 0.8),
        )
    )
    bias, weight = found["decoder.cls_score.bias"], found["decoder.cls_score.weight"]
    assert (bias["lr"], bias["weight_decay"]) == (0.02, 0.5)
    assert (weight["lr"], weight["weight_decay"]) == (0.01, 1e-4)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in found.values())


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_a_step_with_clipping_is_that_of_an_independent_computation(make_cfg, kind):
    limit = 0.01
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", limit),
    )
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    clipped = 0
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=generator) * 0.02
        if kind == "norm":
            length = p.grad.square().sum().sqrt()
            grad = p.grad * min(1.0, limit / (length + 1e-6))
        else:
            grad = p.grad.clamp(-limit, limit)
        clipped += not torch.equal(grad, p.grad)
        group = group_of[id(p)]
        expected[name] = p.detach() - group["lr"] * (grad + group["weight_decay"] * p.detach())
    assert clipped > 10
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-6, atol=1e-7)


# Before the launch


def launch_args(**changes: object) -> argparse.Namespace:
    values = {"num_gpus": 1, "num_machines": 1, "resume": False, "eval_only": False}
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("overrides", "args", "parts"),
    [
        (["MODEL.DEVICE", "cuda"], {}, ["MODEL.DEVICE cpu", "no GPU"]),
        (["MODEL.DEVICE", "cuda"], {"num_gpus": 4}, ["--num-gpus is 4", "sees 2"]),
        (["SOLVER.IMS_PER_BATCH", "6"], {"num_gpus": 4}, ["IMS_PER_BATCH is 6", "4 ranks"]),
        (["SOLVER.IMS_PER_BATCH", "6"], {"num_gpus": 2, "num_machines": 2}, ["4 ranks"]),
        (["SOLVER.IMS_PER_BATCH", "1"], {"num_gpus": 2}, ["IMS_PER_BATCH is 1", "2 ranks"]),
        ([], {"eval_only": True}, ["--eval-only", "MODEL.WEIGHTS", "--resume"]),
        ([], {"eval_only": True, "resume": True}, ["--eval-only", "OUTPUT_DIR"]),
        (["MODEL.WEIGHTS", "no/such.pkl"], {}, ["MODEL.WEIGHTS", "'no/such.pkl'"]),
    ],
)
def test_what_would_stop_every_rank_is_said_before_any_starts(
    make_cfg, monkeypatch, overrides, args, parts
):
    count = 2 if "num_gpus" in args else 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        check_launch(make_cfg(*overrides), launch_args(**args))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("overrides", "args"),
    [
        ([], {}),
        (["SOLVER.IMS_PER_BATCH", "6"], {"num_gpus": 2, "num_machines": 3}),
        (["SOLVER.IMS_PER_BATCH", "3", "MODEL.WEIGHTS", __file__], {"num_gpus": 2, "eval_only": 1}),
        (["MODEL.WEIGHTS", "detectron2://x.pkl"], {}),
        ([], {"num_gpus": 0}),
    ],
)
def test_a_launch_that_can_work_is_let_through(make_cfg, overrides, args):
    check_launch(make_cfg(*overrides), launch_args(**args))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["MODEL.YOLOF.MATCHER.NAME", "Uniform"], r"MATCHER.NAME is 'Uniform'.*UniformMatcher"),
        (["MODEL.YOLOF.ENCODER.DILATED.DILATIONS", "[0]"], r"DILATIONS must be 1 or more"),
    ],
)
def test_a_model_that_cannot_be_built_is_told_before_the_launch(make_cfg, overrides, said):
    cfg = make_cfg(*overrides)
    with pytest.raises(ConfigError, match=said):
        check_launch(cfg, launch_args())


def test_the_trial_build_downloads_nothing_and_leaves_the_config_alone(make_cfg, monkeypatch):
    create, asked = timm.create_model, []

    def record(*args, pretrained=False, **options):
        asked.append(pretrained)
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", record)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.PRETRAINED", "True")
    cfg.freeze()
    check_launch(cfg, launch_args())
    assert asked and not any(asked)
    assert cfg.MODEL.TIMM.PRETRAINED and cfg.is_frozen()


def test_a_resumed_run_needs_no_weights_file(make_cfg, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg = make_cfg("MODEL.WEIGHTS", "gone.pkl")
    check_launch(cfg, launch_args(resume=True))
    check_launch(cfg, launch_args(resume=True, eval_only=True))


# Runs


@pytest.mark.parametrize("precision", ["none", "fp16", "bf16"])
def test_a_run_in_any_precision_stays_finite_and_leaves_its_record(make_cfg, tmp_path, precision):
    amp = ["SOLVER.AMP.ENABLED", precision != "none"]
    amp += ["SOLVER.AMP.PRECISION", precision] if precision != "none" else []
    # fp16 leaves out its first steps, until the scale of the loss has come down.
    trainer = make_trainer(make_cfg(*amp, "SOLVER.MAX_ITER", 16), {16: 12.5})
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["decoder.cls_score.weight"], after["decoder.cls_score.weight"])

    lines = metrics(tmp_path)
    assert all(math.isfinite(line["total_loss"]) for line in lines if "total_loss" in line)
    last = next(line for line in lines if "total_loss" in line)
    assert last["iteration"] == 15
    assert last["train/memory_process_mib"] > 100
    assert {"loss_cls", "loss_box_reg", "lr", "time"} <= last.keys()

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["iterations"] == 16 and summary["results"] == {"bbox": {"AP": 12.5}}
    assert (summary["seed"], summary["world_size"]) == (1, 1)
    assert summary["median_seconds_per_iteration"] > 0 and summary["training_minutes"] > 0
    assert summary["peak_memory_mib"]["process"] > 100
    assert {"commit", "command", "versions", "hardware"} <= summary.keys()


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_too_short_to_be_timed_still_ends_with_a_summary(make_cfg, tmp_path, iterations):
    make_trainer(make_cfg("SOLVER.MAX_ITER", iterations)).train()
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == iterations


def test_a_resumed_run_goes_on_where_the_checkpoint_was_taken(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg("SOLVER.MAX_ITER", 7)), at=5)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    saved = torch.load(tmp_path / "model_0000003.pth", weights_only=False)
    trainer = make_trainer(make_cfg())
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name
    momentum = trainer._trainer.optimizer.state_dict()["state"]
    old = saved["trainer"]["_trainer"]["optimizer"]["state"]
    assert momentum and all(
        torch.equal(state["momentum_buffer"], old[i]["momentum_buffer"])
        for i, state in momentum.items()
    )
    trainer.train()
    assert trainer.iter == 6
    assert trainer.scheduler.last_epoch == 6
    assert (tmp_path / "last_checkpoint").read_text() in ("model_final.pth", "model_best.pth")


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_as_it_was(make_cfg, tmp_path):
    trainer = make_trainer(make_cfg("SOLVER.MAX_ITER", 9))
    forward = trainer.model.forward

    def fail_at_5(data):
        losses = forward(data)
        return (
            {**losses, "loss_cls": losses["loss_cls"] * math.nan} if trainer.iter == 5 else losses
        )

    trainer.model.forward = fail_at_5
    with pytest.raises(NonFiniteLossError, match=r"iteration 5.*loss_cls.*train_0"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    trainer = make_trainer(make_cfg())
    trainer.resume_or_load(resume=True)
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_without_resume_an_old_checkpoint_is_left_aside(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg()), at=3)
    trainer = make_trainer(make_cfg())
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0


def test_a_finished_run_can_be_resumed_to_train_longer(make_cfg):
    make_trainer(make_cfg()).train()
    trainer = make_trainer(make_cfg("SOLVER.MAX_ITER", 9))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 6
    trainer.train()
    assert trainer.scheduler.last_epoch == 9


def test_resuming_a_finished_run_evaluates_it_again(make_cfg):
    make_trainer(make_cfg()).train()
    trainer = make_trainer(make_cfg(), {6: 3.0, 7: 3.0})
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer._last_eval_results == {"bbox": {"AP": 3.0}}


def test_the_best_checkpoint_is_that_of_the_highest_metric(make_cfg, tmp_path):
    make_trainer(make_cfg("TEST.EVAL_PERIOD", 2), {1: 10.0, 3: 30.0, 6: 20.0}).train()
    best = torch.load(tmp_path / "model_best.pth", weights_only=False)
    assert best["iteration"] == 3
    at_3 = torch.load(tmp_path / "model_0000003.pth", weights_only=False)
    assert all(torch.equal(best["model"][name], value) for name, value in at_3["model"].items())


@pytest.mark.parametrize("stop", [4, 5])
def test_the_best_metric_is_remembered_over_a_resume(make_cfg, tmp_path, stop):
    cfg = make_cfg("TEST.EVAL_PERIOD", 2)
    interrupt(make_trainer(cfg, {1: 10.0, 3: 30.0}), at=stop)
    trainer = make_trainer(cfg, {6: 20.0})
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    trainer.train()
    assert torch.load(tmp_path / "model_best.pth", weights_only=False)["iteration"] == 3


def test_an_empty_best_metric_switches_the_best_checkpoint_off(make_cfg, tmp_path):
    make_trainer(make_cfg("TEST.BEST_METRIC", "")).train()
    assert not (tmp_path / "model_best.pth").exists()


def test_a_run_that_stops_early_leaves_no_summary(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg()), at=3)
    assert not (tmp_path / "summary.json").exists()


def test_a_run_that_fails_in_its_last_iteration_leaves_no_summary(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg()), at=5)
    assert not (tmp_path / "summary.json").exists()
