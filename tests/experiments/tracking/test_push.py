from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.jobs.state import Observation, State
from experiments.jobs.submit import discard_outputs
from experiments.store.ledger import Ledger
from experiments.tracking.push import push
from experiments.tracking.wandb_identity import wandb_identity
from tests.experiments.records import write_json
from tests.wandb_server import WandbServer

ITERATIONS = 100


pytestmark = pytest.mark.usefixtures("wandb_client")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Record two runs of a sweep that have not trained."""
    ledger = Ledger(tmp_path / "runs")
    runs = []
    for identity, name in (("aaaa", "YOLOF"), ("bbbb", "RetinaNet")):
        run: dict[str, Any] = {"id": identity, "name": name, "tags": ["table"], "ranks": 8}
        run["wandb"] = {"id": identity, "name": name, "group": "study"}
        run["config"] = {"SOLVER": {"MAX_ITER": ITERATIONS}, "OUTPUT_DIR": "./output"}
        write_json(ledger.run_folder(identity) / "run.json", run)
        runs.append({"id": identity, "name": name, "row": name, "cells": {}, "seed": 0})
    sweep = {"sweep": "study", "question": "?", "baseline": "YOLOF", "runs": runs}
    write_json(ledger.sweep_folder("study") / "sweep.json", sweep)
    return ledger


def write_metrics(ledger: Ledger, identity: str, *iterations: int, shift: float = 0.0) -> None:
    folder = ledger.run_folder(identity)
    with (folder / "metrics.json").open("a") as file:
        for iteration in iterations:
            record = {"iteration": iteration, "total_loss": 1 / (iteration + 1) + shift}
            if iteration == ITERATIONS:
                record |= {"bbox/AP": 12.3, "bbox/AP-cat": float("nan")}
            file.write(json.dumps(record) + "\n")


def losses(server: WandbServer, identity: str) -> dict[int, float]:
    rows = server.runs[identity].history
    assert [row["iteration"] for row in rows] == [row["_step"] for row in rows]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    return {row["_step"]: row["total_loss"] for row in rows}


def expected(*iterations: int) -> dict[int, float]:
    return {iteration: 1 / (iteration + 1) for iteration in iterations}


def test_push_sends_what_is_missing_and_nothing_twice(ledger, server, monkeypatch, caplog):
    caplog.set_level("INFO", "experiments")
    monkeypatch.setenv("WANDB_MODE", "offline")  # for the jobs
    write_json(ledger.run_folder("aaaa") / "attempts" / "1.json", {"commit": "0123456789ab"})
    write_metrics(ledger, "aaaa", 19, 39)
    assert push(ledger, "study") == "1 sent, 1 no figures yet"
    assert losses(server, "aaaa") == expected(19, 39)
    run = server.runs["aaaa"]
    assert (run.name, run.group, run.job_type, run.tags) == ("YOLOF", "study", "train", ["table"])
    config = run.plain_config()
    assert (config["SOLVER.MAX_ITER"], config["ranks"]) == (100, 8)
    assert config["commit"] == "0123456789ab"
    assert run.state == "failed"

    lines = list(run.lines)
    assert push(ledger, "study") == "1 up to date, 1 no figures yet"
    assert run.lines == lines

    # Requeued from a checkpoint before 39, and trained to the end.
    write_metrics(ledger, "aaaa", 39, 59, 79, 99, 100)
    write_metrics(ledger, "bbbb", 19)
    assert push(ledger, "study") == "2 sent"
    assert losses(server, "aaaa") == expected(19, 39, 59, 79, 99, 100)
    assert losses(server, "bbbb") == expected(19)
    assert "YOLOF: sent; 4 records up to iteration 100" in caplog.text
    assert run.state == "finished"
    assert run.summary["bbox/AP"] == 12.3
    assert "bbox/AP-cat" not in run.summary
    assert run.overwritten == 0
    assert list(server.runs) == ["aaaa", "bbbb"]
    assert push(ledger, "study") == "2 up to date"


def test_restarted_run_is_another_one(ledger, server):
    write_metrics(ledger, "aaaa", 19, 39)
    push(ledger, "study")
    discard_outputs(ledger.run_folder("aaaa"))
    write_metrics(ledger, "aaaa", 19, shift=1.0)
    assert wandb_identity(ledger, "aaaa").id == "aaaa-2"
    push(ledger, "study")
    assert losses(server, "aaaa") == expected(19, 39)
    assert losses(server, "aaaa-2") == {19: 1 / 20 + 1}


def test_push_leaves_alone_what_sends_itself(ledger, server, monkeypatch):
    write_metrics(ledger, "aaaa", 19)
    write_metrics(ledger, "bbbb", 19)
    for identity, folder in (("aaaa", "run-1-aaaa"), ("bbbb", "offline-run-1-bbbb")):
        files = ledger.run_folder(identity) / "wandb"
        (files / folder).mkdir(parents=True)
        (files / "latest-run").symlink_to(folder)
    running = {identity: Observation(State.RUNNING) for identity in ("aaaa", "bbbb")}
    monkeypatch.setattr("experiments.tracking.push.observe", lambda *_: (running, ""))
    push(ledger, "study")
    assert list(server.runs) == ["bbbb"]


def no_key(server: WandbServer, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("WANDB_API_KEY")


def no_server(server: WandbServer, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")


def refusal(server: WandbServer, patch: pytest.MonkeyPatch) -> None:
    server.behaviour = "refuse"


@pytest.mark.parametrize("trouble", [no_key, no_server, refusal])
def test_push_that_fails_says_why_and_is_made_good_by_the_next(
    trouble, ledger, server, monkeypatch
):
    monkeypatch.setattr("yolof_d2.tracking.push._SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("yolof_d2.tracking.push._REQUEST_SECONDS", 1)
    write_metrics(ledger, "aaaa", 19, 39)
    with monkeypatch.context() as patch:
        trouble(server, patch)
        with pytest.raises(ExperimentError, match=r"^W&B: .* Expected a key"):
            push(ledger, "study")
    if trouble is not refusal:
        return
    server.behaviour = "fine"
    assert push(ledger, "study") == "1 sent, 1 no figures yet"
    assert losses(server, "aaaa") == expected(19, 39)
