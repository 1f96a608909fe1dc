from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from tests.small import read_lines
from yolof_d2.engine import Trainer
from yolof_d2.errors import ConfigError, NonFiniteLossError, TrainingStopped


def make_trainer(cfg: CfgNode, ap: dict[int, float] | None = None) -> Trainer:
    """A trainer whose evaluation gives the AP listed for the iteration (0 where none is)."""
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.test = lambda *_: {"bbox": {"AP": (ap or {}).get(trainer.iter, 0.0)}}
    return trainer


def call_at(trainer: Trainer, at: int, act: Callable[[], None]) -> None:
    """Let the trainer call ``act`` in the middle of iteration ``at``."""
    step = trainer.run_step

    def run_step():
        if trainer.iter == at:
            act()
        step()

    trainer.run_step = run_step


def interrupt(trainer: Trainer, at: int) -> None:
    """Train until the start of iteration ``at``, as if the process had been stopped there."""

    def stop():
        raise RuntimeError("stopped")

    call_at(trainer, at, stop)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train()


def resume(cfg: CfgNode, ap: dict[int, float] | None = None) -> Trainer:
    """A new trainer, as of a process that goes on with the run."""
    trainer = make_trainer(cfg, ap)
    trainer.resume_or_load(resume=True)
    return trainer


# Stopping on request


def test_a_request_stops_at_the_next_boundary_and_the_run_goes_on_from_there(make_cfg):
    trainer = make_trainer(make_cfg("TEST.EVAL_PERIOD", 3), {2: 7.0})
    call_at(trainer, 2, lambda: trainer.request_stop("SIGUSR2"))
    with pytest.raises(TrainingStopped, match="SIGUSR2"):
        trainer.train()
    saved = torch.load(f"{trainer.cfg.OUTPUT_DIR}/model_0000002.pth", weights_only=False)
    assert trainer.iter == saved["iteration"] == 2
    assert trainer._last_eval_results == {"bbox": {"AP": 7.0}}  # due at the same iteration
    resumed = resume(make_cfg())
    assert resumed.start_iter == 3
    resumed.train()
    assert resumed.iter == resumed.max_iter


def test_a_request_in_the_last_iteration_lets_the_run_end(make_cfg):
    trainer = make_trainer(make_cfg())
    call_at(trainer, trainer.max_iter - 1, lambda: trainer.request_stop("SIGUSR2"))
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
    own = ["SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.5]
    found = groups(make_cfg(*own, "SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.8))
    bias, weight = found["decoder.cls_score.bias"], found["decoder.cls_score.weight"]
    assert (bias["lr"], bias["weight_decay"]) == (0.02, 0.5)
    assert (weight["lr"], weight["weight_decay"]) == (0.01, 1e-4)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in found.values())


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_a_step_with_clipping_is_that_of_an_independent_computation(make_cfg, kind):
    limit = 0.01
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind),
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

    lines = read_lines(tmp_path / "metrics.json")
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


def test_a_resumed_run_goes_on_where_the_checkpoint_was_taken(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg("SOLVER.MAX_ITER", 7)), at=5)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    saved = torch.load(tmp_path / "model_0000003.pth", weights_only=False)
    trainer = resume(make_cfg())
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
        return losses | {"loss_cls": losses["loss_cls"] * (math.nan if trainer.iter == 5 else 1)}

    trainer.model.forward = fail_at_5
    with pytest.raises(NonFiniteLossError, match=r"iteration 5.*loss_cls.*train_0"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    trainer = resume(make_cfg())
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_without_resume_an_old_checkpoint_is_left_aside(make_cfg, tmp_path):
    interrupt(make_trainer(make_cfg()), at=3)
    trainer = make_trainer(make_cfg())
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0


def test_a_finished_run_can_be_resumed_to_train_longer(make_cfg):
    make_trainer(make_cfg()).train()
    trainer = resume(make_cfg("SOLVER.MAX_ITER", 9))
    assert trainer.start_iter == 6
    trainer.train()
    assert trainer.scheduler.last_epoch == 9


def test_another_config_is_refused_where_it_changes_results(make_cfg):
    interrupt(make_trainer(make_cfg()), at=4)
    changed = ("SOLVER.BASE_LR", 0.5, "SOLVER.MOMENTUM", 0.1)
    with pytest.raises(
        ConfigError, match=r"SOLVER.BASE_LR: .* then, 0.5 now; SOLVER.MOMENTUM: 0.9"
    ):
        resume(make_cfg(*changed))
    group = resume(make_cfg(*changed, "SOLVER.RESUME_CHANGED", True))._trainer.optimizer
    assert all(each["momentum"] == 0.1 for each in group.param_groups)
    assert max(each["initial_lr"] for each in group.param_groups) == 0.5
    resume(make_cfg("SOLVER.CHECKPOINT_PERIOD", 3, "DATALOADER.NUM_WORKERS", 1))


def test_fewer_iterations_than_are_trained_are_refused(make_cfg):
    make_trainer(make_cfg()).train()
    with pytest.raises(ConfigError, match=r"has 6 iterations, SOLVER.MAX_ITER is 4"):
        resume(make_cfg("SOLVER.MAX_ITER", 4))


def test_resuming_a_finished_run_evaluates_it_again(make_cfg):
    make_trainer(make_cfg()).train()
    trainer = resume(make_cfg(), {6: 3.0, 7: 3.0})
    trainer.train()
    assert trainer._last_eval_results == {"bbox": {"AP": 3.0}}


@pytest.mark.parametrize("stop", [4, 5])
def test_the_best_checkpoint_is_of_the_highest_metric_also_over_a_resume(make_cfg, tmp_path, stop):
    cfg = make_cfg("TEST.EVAL_PERIOD", 2)
    interrupt(make_trainer(cfg, {1: 10.0, 3: 30.0}), at=stop)
    trainer = resume(cfg, {6: 20.0})
    assert trainer.start_iter == 4
    trainer.train()
    files = [tmp_path / f"model_{name}.pth" for name in ("best", "0000003")]
    best, at_3 = (torch.load(file, weights_only=False)["model"] for file in files)
    assert all(torch.equal(best[name], value) for name, value in at_3.items())


def test_an_empty_best_metric_switches_the_best_checkpoint_off(make_cfg, tmp_path):
    make_trainer(make_cfg("TEST.BEST_METRIC", "")).train()
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize("at", [3, 5], ids=["early", "in its last iteration"])
def test_a_run_that_fails_leaves_no_summary(make_cfg, tmp_path, at):
    interrupt(make_trainer(make_cfg()), at)
    assert not (tmp_path / "summary.json").exists()
