"""A sweep's figures in its files, in Weights & Biases and in its log are the same figures."""

from __future__ import annotations

import csv
import math
import os
import re
import signal
from pathlib import Path

import pytest

from tests.experiments.tiny import (
    checkpoint_iteration,
    experiments,
    make_runs,
    rank_processes,
    run_folders,
    start,
    state,
)
from tests.tracking.wandb_files import LocalRun, read_run
from tests.waiting import CAP, wait_until
from yolof_d2.measure.metrics_file import read_metrics

ITERATIONS = 110


def is_worth_a_kill(folder: Path) -> bool:
    """Whether W&B logs the run, and will see the last iterations again."""
    if not list((folder / "wandb").glob("offline-run-*/*.wandb")):
        return False
    records = read_metrics(folder / "metrics.json")
    return records[-1]["iteration"] > checkpoint_iteration(folder)


@pytest.fixture(scope="module")
def killed(tiny, shared, tmp_path_factory) -> Path:
    """Kill and requeue a run; return the folder of all runs."""
    runs = make_runs(tmp_path_factory.mktemp("killed") / "runs", shared)
    overrides = {
        **tiny.trouble(SECONDS=0.05),
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.STEPS": [100],
        "SOLVER.CHECKPOINT_PERIOD": 17,
        "TEST.EVAL_PERIOD": 50,
        # Detections before anything is learned.
        "MODEL.YOLOF.SCORE_THRESH_TEST": 0.0,
    }
    sweep, cluster = tiny.sweep(overrides=overrides, tags=["nightly"]), tiny.cluster()
    words = (sweep, "--cluster", cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        submit = start(runs, "submit", *words)
        wait_until(lambda: (runs / "sweeps" / "tiny" / "sweep.json").exists())
        folder = run_folders(runs)["a"]
        wait_until(lambda: is_worth_a_kill(folder))
        os.kill(rank_processes(folder)[0], signal.SIGKILL)
        said, _ = submit.communicate(timeout=CAP)
        assert submit.returncode == 1 and "1 failed" in said
        assert "0 of 1 runs submitted" in experiments(runs, "submit", *words)
        kept = checkpoint_iteration(folder) + 1  # iterations that the checkpoint has
        assert "now 1 finished" in experiments(runs, "retry", *words)
    assert [start["first"] for start in state(folder)["attempts"]] == [0, kept]
    assert kept % 17 == 0
    return runs


@pytest.fixture(scope="module")
def folder(killed) -> Path:
    return run_folders(killed)["a"]


@pytest.fixture(scope="module")
def logged(folder) -> LocalRun:
    """Return the run as W&B has it, from the last offline folder, which a sync sends."""
    starts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(starts) == 2
    return read_run(starts[-1])


def test_a_run_that_was_killed_is_one_gapless_run(folder, logged):
    records = read_metrics(folder / "metrics.json")
    assert len(state(folder)["attempts"]) == 2
    assert checkpoint_iteration(folder) == ITERATIONS - 1
    steps = [row["_step"] for row in logged.rows]
    assert steps == [int(record["iteration"]) for record in records]
    assert set(range(19, ITERATIONS, 20)) | {49, 99, ITERATIONS} <= set(steps)
    # It repeated something, which is there once.
    lines = (folder / "metrics.json").read_text().splitlines()
    assert len(lines) == len(records)
    assert logged.run.run_id == folder.name
    assert (logged.run.display_name, logged.run.run_group) == ("a", "tiny")
    assert list(logged.run.tags) == ["nightly"]


def test_every_figure_in_wandb_is_that_of_the_files_to_the_last_digit(folder, logged):
    for record, row in zip(read_metrics(folder / "metrics.json"), logged.rows, strict=True):
        figures = {name: value for name, value in record.items() if math.isfinite(value)}
        assert {name: row[name] for name in figures} == figures


def test_table_wandb_and_log_agree_to_the_last_digit(killed, folder, logged):
    experiments(killed, "report", "tiny", "--no-plots")
    (row,) = csv.DictReader((killed / "sweeps" / "tiny" / "report.csv").open())
    last = read_metrics(folder / "metrics.json")[-1]
    log = (folder / "log.txt").read_text()
    printed = re.findall(r"copypaste: (AP,.*)\n.*copypaste: ([\d.,nan]+)", log)[-1]
    in_log = dict(zip(*(line.split(",") for line in printed), strict=True))
    compared = 0
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        value = last[f"bbox/{metric}"]
        if math.isnan(value):
            assert row[metric] == "" and f"bbox/{metric}" not in logged.summary
            continue
        assert float(row[metric]) == logged.summary[f"bbox/{metric}"] == value
        assert in_log[metric] == f"{value:.4f}"
        compared += 1
    assert compared >= 4 and float(row["AP"]) > 0
