from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from wandb.errors import term

from tests.tracking.training import make_cfg, timeline, train, train_and_die
from tests.tracking.wandb_files import read_run
from tests.waiting import wait_until
from yolof_d2.measure.metrics_file import read_metrics, summarise
from yolof_d2.tracking import writer
from yolof_d2.tracking.__main__ import main

pytestmark = pytest.mark.usefixtures("wandb_client")

ROOT = Path(__file__).parents[2]
MUCH = 50.0  # seconds: less than what hangs would take, more than a busy machine


def figures_of(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Step -> figures of what W&B has; steps must ascend."""
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    return {
        row["_step"]: {k: v for k, v in row.items() if not k.startswith(("_", "predictions"))}
        for row in rows
    }


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our lines of the log; W&B's own go to its own files."""
    ours = [r for r in caplog.records if r.name.startswith("yolof_d2")]
    return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]


def count_offline_folders(folder: Path) -> int:
    return len(list((folder / "wandb").glob("offline-run-*/*.wandb")))


def wait_at(iteration: int, condition: Callable[[], bool], done: int) -> None:
    """What a training does after each iteration: wait, once."""
    if done == iteration:
        wait_until(condition)


def time_close(
    train: Callable[[Callable[[int], None]], None], after: Callable[[int], None]
) -> float:
    """Seconds from the last iteration of a training until it lets go."""
    last = 0.0

    def note(done: int) -> None:
        nonlocal last
        after(done)
        last = time.monotonic()

    train(note)
    return time.monotonic() - last


def client_processes() -> list[int]:
    """Ids of W&B's own processes that live."""
    command = ["ps", "--no-headers", "-o", "pid,stat,comm", "--ppid", str(os.getpid())]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return [int(pid) for pid, state, name, *_ in rows if name == "wandb-core" and state[0] != "Z"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes longer than a few seconds."""
    monkeypatch.setattr(writer, "_INIT_SECONDS", 2.0)
    monkeypatch.setattr(writer, "_FINISH_SECONDS", 0.5)
    monkeypatch.setattr(writer, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(writer, "_STOP_SECONDS", 0.5)


def test_offline_files_have_every_figure(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "0123abcd")
    monkeypatch.setenv("WANDB_NAME", "k=4,seed=1")
    monkeypatch.setenv("WANDB_RUN_GROUP", "study")
    monkeypatch.setenv("WANDB_TAGS", "table,paper")
    train(make_cfg(folder))

    local = read_run(folder / "wandb" / "latest-run")
    assert figures_of(local.rows) == timeline(folder)
    assert [row["_step"] for row in local.rows if "predictions.path" in row] == [49, 100]
    run = local.run
    assert (run.run_id, run.display_name, run.run_group) == ("0123abcd", "k=4,seed=1", "study")
    assert (run.job_type, run.project) == ("train", "yolof_d2")
    assert sorted(run.tags) == ["ours", "paper", "table"]
    assert not run.git.commit  # of whatever checkout the code lies in
    assert local.config["SOLVER.MAX_ITER"] == 100
    assert local.config["MODEL.ANCHOR_GENERATOR.SIZES"] == [[32, 64, 128, 256, 512]]
    assert local.config["ranks"] == 1
    assert local.config["commit"]
    assert local.summary["summary/training_minutes"] == 0

    table = local.summary["tables/per_class_AP"]
    rows = json.loads((folder / "wandb" / "latest-run" / "files" / table["path"]).read_text())
    assert rows["data"] == [["cat", timeline(folder)[100]["bbox/AP-cat"]]]


def test_last_offline_folder_is_whole_after_three_kills(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = make_cfg(folder)
    for start, (first, last) in enumerate(((0, 45), (30, 66), (60, 90))):
        after = partial(wait_at, last, lambda n=start: count_offline_folders(folder) > n)
        train_and_die(cfg, first, last, after=after)
    train(cfg, 60)

    assert count_offline_folders(folder) == 4
    local = read_run(folder / "wandb" / "latest-run")
    assert figures_of(local.rows) == timeline(folder)
    assert sorted(timeline(folder)) == [19, 39, 49, 59, 79, 99, 100]


def test_server_gets_every_figure(folder, server, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "0123abcd")
    monkeypatch.setenv("WANDB_RUN_GROUP", "study")
    cfg = make_cfg(folder)
    cfg.WANDB.LOG_MODEL = True
    (folder / "model_final.pth").write_bytes(b"weights")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    train(cfg)

    assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
    assert list(server.runs) == ["0123abcd"]
    run = server.runs["0123abcd"]
    assert figures_of(run.history) == timeline(folder)
    assert [row["_step"] for row in run.history if "predictions" in row] == [49, 100]
    assert sum(name.startswith("media/images") for name in run.files) == 2
    assert (run.group, run.job_type, run.tags) == ("study", "train", ["ours"])
    assert run.plain_config()["SOLVER.MAX_ITER"] == 100
    assert run.state == "finished"
    assert "0123abcd-weights" in server.artifacts
    digest = summarise(read_metrics(folder / "metrics.json"))
    assert run.summary["summary/training_minutes"] == digest["training_minutes"]
    assert run.summary["bbox/AP"] == timeline(folder)[100]["bbox/AP"]


def test_killed_run_goes_on_without_hole_or_repetition(folder, server):
    cfg = make_cfg(folder)
    before: dict[int, dict[str, Any]] = {}
    # What was written between that wait and the end is lost on the way.
    for first, waits_at, lines, last in ((0, 25, 1, 45), (30, 65, 4, 66), (60, 85, 5, 90)):
        after = partial(wait_at, waits_at, lambda n=lines: server.lines() >= n)
        train_and_die(cfg, first, last, after=after)
        (run,) = server.runs.values()
        sent = figures_of(run.history)
        assert before.items() <= sent.items()
        before = sent
    train(cfg, 60)

    (run,) = server.runs.values()
    now = timeline(folder)
    assert list(figures_of(run.history)) == list(now) == [19, 39, 49, 59, 79, 99, 100]
    assert figures_of(run.history) == {**now, **before}
    assert run.overwritten == 0
    assert run.state == "finished"


def test_standalone_training_keeps_its_id_only_when_it_is_resumed(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = make_cfg(folder)
    ids = []
    for first in (0, 30, 0):
        train(cfg, first, 50)
        ids.append(read_run(folder / "wandb" / "latest-run").run.run_id)
        assert ids[-1] == json.loads((folder / "wandb.json").read_text())["id"]
    assert ids[0] == ids[1] != ids[2]


def test_outage_in_the_middle_loses_nothing(folder, server, caplog):
    def after(done: int) -> None:
        if done == 25:
            wait_until(lambda: server.lines() == 1)
            server.behaviour = "hang"
        if done == 45:
            wait_until(lambda: server.failed > 0)
            server.recover()

    train(make_cfg(folder), after=after)
    (run,) = server.runs.values()
    assert figures_of(run.history) == timeline(folder)
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("trouble", "finish_seconds", "reason"),
    [("hang", 0.5, "TimeoutError"), ("refuse", 10.0, "RuntimeError")],
)
@pytest.mark.usefixtures("hasty")
def test_server_that_fails_costs_a_line_and_a_push_makes_it_good(
    trouble, finish_seconds, reason, folder, server, monkeypatch, caplog
):
    monkeypatch.setattr(writer, "_FINISH_SECONDS", finish_seconds)

    def after(done: int) -> None:
        if done == 30:
            wait_until(lambda: len(server.runs) == 1)
            server.behaviour = trouble

    seconds = time_close(lambda after: train(make_cfg(folder), after=after), after)
    assert seconds < MUCH
    assert list(timeline(folder)) == [19, 39, 49, 59, 79, 99, 100]
    (line,) = warnings_in(caplog)
    assert "training goes on" in line
    assert f"python -m yolof_d2.tracking {folder}" in line
    assert reason in line

    server.recover()
    main([str(folder)])
    (run,) = server.runs.values()
    assert figures_of(run.history) == timeline(folder)


@pytest.mark.usefixtures("hasty")
def test_run_that_stops_early_hardly_waits_for_the_server(folder, server, monkeypatch, caplog):
    def after(done: int) -> None:
        if done == 30:
            wait_until(lambda: len(server.runs) == 1)
            server.behaviour = "hang"

    monkeypatch.setattr(writer, "_INIT_SECONDS", 2 * MUCH)  # how long a finished run may wait
    seconds = time_close(lambda after: train(make_cfg(folder), 0, 70, after=after), after)
    assert seconds < MUCH
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("trouble", ["no key", "hang"])
def test_without_a_server_it_logs_offline(trouble, folder, server, monkeypatch, caplog):
    monkeypatch.setattr(writer, "_INIT_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_RUN_GROUP", "study")
    asked: list[str] = []
    if trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setattr(term, "_sys_stdin_isatty", lambda: True)
        monkeypatch.setattr(term, "_sys_stderr_isatty", lambda: True)
        monkeypatch.setattr(term, "_terminput", lambda prompt, **_: asked.append(prompt) or "3")
    else:
        server.behaviour = trouble
    train(make_cfg(folder))
    local = read_run(folder / "wandb" / "latest-run")
    assert figures_of(local.rows) == timeline(folder)
    (line,) = warnings_in(caplog)
    assert "cannot be reached" in line
    assert "python -m experiments push study" in line
    assert asked == []


@pytest.mark.parametrize("name", ["KILL", "STOP"])
@pytest.mark.usefixtures("hasty")
def test_client_that_dies_or_hangs_costs_a_line(name, folder, server, caplog):
    def after(done: int) -> None:
        if done == 30:
            wait_until(lambda: server.lines() == 1)
            (pid,) = client_processes()
            os.kill(pid, getattr(signal, f"SIG{name}"))

    seconds = time_close(lambda after: train(make_cfg(folder), after=after), after)
    assert seconds < MUCH
    assert list(timeline(folder)) == [19, 39, 49, 59, 79, 99, 100]
    (line,) = warnings_in(caplog)
    assert "training goes on" in line
    assert client_processes() == []


def test_folder_that_cannot_be_written_costs_a_line(folder, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = make_cfg(folder)
    (folder / "wandb").write_text("a file where the folder should be")
    train(cfg)
    assert list(timeline(folder)) == [19, 39, 49, 59, 79, 99, 100]
    (line,) = warnings_in(caplog)
    assert "training goes on" in line
