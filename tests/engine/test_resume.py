"""A run that was killed, however often, is the run that nobody touched."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase

from tests.small import load, read_lines, write_config
from yolof_d2.engine import Launch, Trainer, setup_run

MAX_ITER = 45
MEASURED = ("time", "seconds", "memory", "per_second", "eta_")  # another machine, another value
SCHEDULE = ("SOLVER.MAX_ITER", MAX_ITER, "SOLVER.STEPS", "(30,)", "SOLVER.CHECKPOINT_PERIOD", 7)
SCHEDULE += ("TEST.EVAL_PERIOD", 15, "SOLVER.IMS_PER_BATCH", 4, "SEED", 3)
SCHEDULE += ("INPUT.RANDOM_SHIFT.PROB", 0.5, "SOLVER.DETERMINISTIC", True)


class DieAt(HookBase):
    """Ends the process as SIGKILL does: nothing is written or closed."""

    def __init__(self, iteration: int):
        self._iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            os._exit(9)

    def after_train(self) -> None:  # runs after the last checkpoint, before the last evaluation
        if self._iteration == MAX_ITER:
            os._exit(9)


def _train(config: str, out: str, overrides: Sequence[object], die_at: int | None) -> None:
    torch.set_num_threads(1)
    cfg = load(config, *SCHEDULE, "OUTPUT_DIR", out, *overrides)
    setup_run(cfg, Launch(resume=True))
    trainer = Trainer(cfg)
    if die_at is not None:
        trainer._hooks.insert(0, DieAt(die_at))
        trainer._hooks[0].trainer = trainer
    trainer.resume_or_load(resume=True)
    trainer.train()
    os._exit(0)


def train(config: str, out: Path, *overrides: object, kills: Sequence[int] = ()) -> Path:
    """Train in processes that die before these iterations, and then in one to the end."""
    for die_at in (*kills, None):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_train, args=(config, str(out), overrides, die_at))
        process.start()
        process.join()
        assert process.exitcode == (0 if die_at is None else 9)
    return out


def result(out: Path) -> dict[str, Any]:
    """What must be equal to the last bit."""
    records = [
        {name: str(v) for name, v in line.items() if not any(word in name for word in MEASURED)}
        for line in read_lines(out / "metrics.json")
    ]
    records = [each for each in records if each.keys() != {"iteration"}]
    saved = torch.load(out / "model_final.pth", weights_only=True)
    weights = {name: value.numpy().tobytes() for name, value in saved["model"].items()}
    momentum = saved["trainer"]["_trainer"]["optimizer"]["state"]
    weights |= {i: each["momentum_buffer"].numpy().tobytes() for i, each in momentum.items()}
    detections = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    stream = json.loads((out / "summary.json").read_text())["stream"]
    return {"metrics": records, "weights": weights, "detections": detections, "stream": stream}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return write_config(tmp_path_factory.mktemp("data"), 30, 6)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> dict[str, Any]:
    return result(train(config, tmp_path_factory.mktemp("whole")))


def test_each_iteration_is_there_once_and_the_run_has_learnt(whole):
    iterations = [int(record["iteration"]) for record in whole["metrics"]]
    assert iterations == sorted(set(iterations)) and iterations[-1] == MAX_ITER
    assert float(whole["metrics"][-1]["bbox/AP50"]) > 0


@pytest.mark.parametrize("kills", [(3,), (10, 12, 16, 31, 44), (8, 9, 9), (MAX_ITER, MAX_ITER)])
def test_killed_and_resumed_it_is_the_run_that_nobody_touched(config, whole, tmp_path, kills):
    found = result(train(config, tmp_path, kills=kills))
    for part in ("stream", "metrics", "detections", "weights"):
        assert found[part] == whole[part], part


def test_so_it_is_with_another_number_of_workers(config, whole, tmp_path):
    found = result(train(config, tmp_path, "DATALOADER.NUM_WORKERS", 2, kills=(20,)))
    assert found == whole
