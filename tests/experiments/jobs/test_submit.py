"""Runs on this machine, in real processes: submit, stop, requeue, crash, retry, cancel."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.experiments.records import read_json
from tests.experiments.tiny import (
    ROOT,
    SLOW,
    checkpoint_iteration,
    experiments,
    is_training,
    rank_processes,
    run_folders,
    start,
    state,
)
from tests.waiting import CAP, wait_until


def test_two_submits_at_once_train_each_run_once_and_a_third_does_nothing(tiny, runs):
    sweep, cluster = tiny.sweep(ranks=2, seeds=[0, 1]), tiny.cluster()
    words = ("submit", sweep, "--cluster", cluster, "--parallel", 2)
    submits = [start(runs, *words) for _ in range(2)]
    said = [submit.communicate(timeout=CAP)[0] for submit in submits]
    for name, folder in run_folders(runs).items():
        run, summary = read_json(folder / "run.json"), read_json(folder / "summary.json")
        assert run["config"]["SEED"] == summary["seed"] == int(name[-1])
        assert summary["world_size"] == 2 and summary["iterations"] == 6
        assert summary["command"].startswith("python train_net.py --config-file")
        attempt = read_json(folder / "attempts" / "1.json")
        assert len(attempt["data"]) == 2 and "torch" in attempt["packages"]
        assert attempt["code"]["commit"] and Path(attempt["code_folder"], "yolof_d2").is_dir()
        assert state(folder)["state"] == "finished" and len(state(folder)["attempts"]) == 1, said
        assert [point[0] for point in state(folder)["evaluations"]] == [6]
    before = sorted(path for path in runs.rglob("*") if path.is_dir())
    assert "0 of 2 runs submitted; now 2 finished" in experiments(runs, *words)
    assert sorted(path for path in runs.rglob("*") if path.is_dir()) == before


def test_finished_runs_stay_when_a_sweep_is_edited_and_restart_when_told(tiny, runs):
    cluster = tiny.cluster()
    experiments(runs, "submit", tiny.sweep(), "--cluster", cluster)
    first = run_folders(runs)["a"]
    finished = os.stat(first / "summary.json").st_mtime_ns
    sweep = tiny.sweep(runs={"a": {}, "b": {"overrides": {"SOLVER.BASE_LR": 0.001}}})
    assert "1 of 2 runs submitted; now 2 finished" in experiments(
        runs, "submit", sweep, "--cluster", cluster
    )
    assert os.stat(first / "summary.json").st_mtime_ns == finished
    experiments(runs, "retry", sweep, "a", "--restart", "--cluster", cluster)
    assert state(first)["attempts"][0]["first"] == 0
    assert len(list(first.glob("discarded-*/model_final.pth"))) == 1


def test_in_this_process_through_the_same_code(tiny, runs):
    sweep = tiny.sweep(runs={"a": {}, "b": {"overrides": {"SOLVER.BASE_LR": 0.001}}})
    said = experiments(runs, "submit", sweep, "--cluster", "debug")
    assert "2 of 2 runs submitted; now 2 finished" in said
    logs = {name: (folder / "log.txt").read_text() for name, folder in run_folders(runs).items()}
    for name, folder in run_folders(runs).items():  # each has its own log, and nobody else's
        (other,) = set(logs) - {name}
        assert str(folder) in logs[name]
        assert str(run_folders(runs)[other]) not in logs[name]


def test_a_signal_saves_at_the_boundary_and_the_run_goes_on(tiny, runs):
    sweep = tiny.sweep(ranks=2, overrides={**SLOW, **tiny.trouble(SECONDS=1.0)})
    submit = start(runs, "submit", sweep, "--cluster", tiny.cluster())
    wait_until(lambda: (runs / "sweeps" / "tiny" / "sweep.json").exists())
    folder = run_folders(runs)["a"]
    wait_until(lambda: is_training(folder))
    # To one rank only: both must stop at the same iteration.
    os.kill(rank_processes(folder)[1], signal.SIGUSR2)
    wait_until(lambda: len(state(folder)["attempts"]) == 2)
    stopped = checkpoint_iteration(folder) + 1
    assert 0 < stopped < 40
    said, _ = submit.communicate(timeout=CAP)
    assert submit.returncode == 0, said
    first, second = state(folder)["attempts"]
    assert (first["first"], first["last"]) == (0, stopped)
    assert (second["first"], second["last"]) == (stopped, 40)
    assert "Exception during training" not in (folder / "log.txt").read_text()
    assert len(list((runs / "all").iterdir())) == 1


def test_a_submit_killed_before_it_noted_its_process_doubles_nothing(tiny, runs):
    sweep = tiny.sweep(overrides=tiny.trouble(SECONDS=2.0))
    submit = start(runs, "submit", sweep, "--cluster", tiny.cluster())
    wait_until(lambda: any((runs / "all").glob("*/state.json")))
    submit.send_signal(signal.SIGKILL)
    submit.wait()
    (record,) = (runs / "submissions").glob("*/submission.json")
    text = record.read_text()
    noted = read_json(record)["job_id"]
    # As if it had died an instant earlier.
    record.write_text(text.replace(f'"job_id": "{noted}"', '"job_id": null'))
    assert "1 running" in experiments(runs, "status", "tiny")
    said = experiments(runs, "submit", sweep, "--cluster", tiny.cluster())
    assert "0 of 1 runs submitted; now 1 running" in said
    folder = run_folders(runs)["a"]
    wait_until(lambda: state(folder)["state"] == "finished")
    assert len(state(folder)["attempts"]) == 1


def test_jobs_run_the_code_as_it_was_when_submitted(tiny, runs, tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("yolof_d2", "experiments", "configs"):
        shutil.copytree(ROOT / name, checkout / name)
    (runs / "code").unlink()  # that of all tests
    submit = start(runs, "submit", tiny.sweep(), "--cluster", tiny.cluster(), cwd=checkout)
    wait_until(lambda: bool(list((runs / "code").glob("[0-9a-f]*"))))
    for module in ("engine/trainer.py", "modeling/meta_arch/yolof.py"):
        (checkout / "yolof_d2" / module).write_text("raise RuntimeError('edited while it waited')")
    said, _ = submit.communicate(timeout=CAP)
    assert "now 1 finished" in said
    folder = run_folders(runs)["a"]
    code = Path(read_json(folder / "attempts" / "1.json")["code_folder"])
    assert "edited" not in (code / "yolof_d2" / "engine" / "trainer.py").read_text()
