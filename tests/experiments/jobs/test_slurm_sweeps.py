"""Sweeps on a real SLURM: two nodes of eight CPUs, with accounting. No run lost, none twice."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.jobs.backends.slurm_commands import STATES, find_jobs
from tests.experiments.records import read_json
from tests.experiments.slurm_cluster import SlurmCluster
from tests.experiments.tiny import (
    SLOW,
    Tiny,
    checkpoint_iteration,
    experiments,
    is_training,
    make_runs,
    run_folders,
    start,
    state,
)
from tests.waiting import CAP, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def site(tiny: Tiny) -> Callable[..., str]:
    """Write a cluster file for this SLURM."""

    def write(**content: object) -> str:
        base = {
            "executor": "slurm", "partition": "main", "ranks_per_node": 8, "gpus_per_node": 8,
            "cpus_per_rank": 1, "time_limit_minutes": 30, "notice_seconds": 20,
        }  # fmt: skip
        return tiny.cluster("site", **{**base, **content})

    return write


@pytest.fixture(scope="module", autouse=True)
def limited(slurm: SlurmCluster, tiny: Tiny, site, shared, tmp_path_factory) -> Path:
    """A run that needs more than its two minutes; started first, since it takes several."""
    runs = make_runs(tmp_path_factory.mktemp("limited") / "runs", shared)
    overrides = {"SOLVER.MAX_ITER": 150, "SOLVER.STEPS": [100], **tiny.trouble(SECONDS=1.0)}
    sweep = tiny.sweep("limited", overrides=overrides)
    cluster = site(time_limit_minutes=2, notice_seconds=20, gpus_per_node=0)
    said = experiments(runs, "submit", sweep, "--cluster", cluster)
    assert "up to 10 time-outs are requeued" in said.lower()
    return runs


def sacct(*job_ids: str) -> dict[str, str]:
    """Return job id -> state of all tasks of these jobs."""
    words = ["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(job_ids)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    return dict(line.split("|") for line in lines if line)


def submissions(runs: Path) -> list[dict]:
    return [read_json(path) for path in sorted((runs / "submissions").glob("*/submission.json"))]


def finished(runs: Path, sweep: str = "tiny") -> dict[str, Path]:
    """Wait for all runs of a sweep; return their folders."""
    folders = run_folders(runs, sweep)

    def done() -> bool:
        states = {state(folder).get("state") for folder in folders.values()}
        assert "failed" not in states, experiments(runs, "status", sweep)
        return states == {"finished"}

    wait_until(done, say=lambda: experiments(runs, "status", sweep))
    assert f": {len(folders)} finished" in experiments(runs, "status", sweep)
    return folders


def wait_for_status(runs: Path, words: str) -> str:
    """Wait until ``status`` says so; return what it says."""
    said = []

    def shown() -> bool:
        said.append(experiments(runs, "status", "tiny"))
        return words in said[-1]

    wait_until(shown, every=1, say=lambda: said[-1])
    return said[-1]


def wait_for_training(runs: Path) -> Path:
    """Wait until the run trains; return its folder."""
    (folder,) = run_folders(runs).values()
    wait_until(lambda: is_training(folder))
    return folder


def wrap_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Make ``sbatch`` run a shell command first, to time what happens meanwhile."""
    script = f'#!/bin/sh\n{first}\nexec {shutil.which("sbatch")} "$@"\n'
    (folder / "sbatch").write_text(script)
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_every_state_of_this_slurm_is_known():
    answer = subprocess.run(["squeue", "-t", "nonsense"], capture_output=True, text=True).stderr
    listed = answer.rpartition("include:")[2] or answer.rpartition(":")[2]
    states = set(re.findall(r"[A-Z_]{4,}", listed))
    assert len(states) > 15, answer
    assert states <= set(STATES)


def test_three_runs_by_two_submits_at_once(tiny, runs, site, tmp_path, monkeypatch):
    wrap_sbatch(tmp_path, monkeypatch, "sleep 2")
    sweep, cluster = tiny.sweep(seeds=[0, 1, 2]), site()
    both = [start(runs, "submit", sweep, "--cluster", cluster) for _ in range(2)]
    said = [submit.communicate(timeout=CAP)[0] for submit in both]
    assert sorted(text.splitlines()[-1][:4] for text in said) == ["0 of", "3 of"], said
    folders = finished(runs)
    for folder in folders.values():
        (attempt,) = state(folder)["attempts"]
        assert (attempt["first"], attempt["last"]) == (0, 6)
    (record,) = submissions(runs)  # one array, and each run once in it
    assert len(set(record["runs"])) == 3
    expected = {f"{record['job_id']}_{task}": "COMPLETED" for task in range(3)}
    wait_until(lambda: sacct(record["job_id"]) == expected)
    assert "0 of 3 runs submitted; now 3 finished" in experiments(
        runs, "submit", sweep, "--cluster", cluster
    )
    assert "3 of 3 runs have results" in experiments(runs, "report", "tiny")


def test_four_ranks_on_two_nodes(tiny, runs, site):
    cluster = site(ranks_per_node=2, gpus_per_node=2)
    experiments(runs, "submit", tiny.sweep(ranks=4), "--cluster", cluster)
    (folder,) = finished(runs).values()
    assert read_json(folder / "summary.json")["world_size"] == 4
    attempt = read_json(folder / "attempts" / "1.json")
    assert attempt["hostnames"] == ["n1", "n2"]
    assert attempt["slurm"]["SLURM_JOB_NUM_NODES"] == "2"
    assert not list(folder.glob("rendezvous-*"))


def test_a_real_preemption_saves_requeues_and_goes_on(tiny, runs, site):
    # SLURM sends its signal to every process, those of the data loader included.
    overrides = {**SLOW, **tiny.trouble(SECONDS=1.0), "DATALOADER.NUM_WORKERS": 1}
    sweep = tiny.sweep(ranks=2, overrides=overrides)
    experiments(runs, "submit", sweep, "--cluster", site(partition="preemptable"))
    folder = wait_for_training(runs)
    words = ["sbatch", "-p", "main", "-N2", "--gpus-per-node=8", "-o", "/dev/null", "--wrap"]
    seen = runs / "seen"
    waits = f"while [ ! -e {seen} ]; do sleep 0.1; done"
    subprocess.run([*words, waits], check=True, stdout=subprocess.PIPE)
    wait_until(lambda: state(folder)["state"] == "stopped")
    stopped = checkpoint_iteration(folder) + 1
    assert 0 < stopped < 40
    wait_for_status(runs, "1 queued")
    seen.touch()
    assert finished(runs) == {"a": folder}
    first, second = state(folder)["attempts"]
    assert (first["last"], second["first"], second["last"]) == (stopped, stopped, 40)
    assert first["job_id"] == second["job_id"]
    assert read_json(folder / "run.json")["wandb"]["id"] == folder.name


def test_what_scancel_ends_is_saved_and_goes_on_only_when_asked(tiny, runs, site):
    sweep = tiny.sweep(overrides={**SLOW, **tiny.trouble(SECONDS=1.0)})
    cluster = site()
    experiments(runs, "submit", sweep, "--cluster", cluster)
    folder = wait_for_training(runs)
    subprocess.run(["scancel", submissions(runs)[0]["job_id"]], check=True)
    wait_for_status(runs, "1 cancelled")
    stopped = checkpoint_iteration(folder) + 1
    assert 0 < stopped < 40
    assert "0 of 1 runs submitted; now 1 cancelled" in experiments(
        runs, "submit", sweep, "--cluster", cluster
    )
    experiments(runs, "retry", sweep, "--cluster", cluster)
    finished(runs)
    assert state(folder)["attempts"][-1]["first"] == stopped


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("error", "RuntimeError: the encoder met a batch it cannot take"),
        ("kill", "a rank was killed, or its node was lost, without a word"),
    ],
)
def test_a_run_that_crashes_is_failed_with_its_last_line(tiny, runs, site, trouble, words):
    overrides = tiny.trouble(CRASH_AT=2, CRASH_RANK=1, WITH=trouble)
    experiments(runs, "submit", tiny.sweep(ranks=2, overrides=overrides), "--cluster", site())
    assert words in wait_for_status(runs, "1 failed")
    assert words in experiments(runs, "logs", "tiny", "--job")
    assert len(submissions(runs)) == 1


def held(runs: Path) -> dict[str, str]:
    """Return run -> job, of the jobs that SLURM holds in its queue."""
    queue = find_jobs(names=[record["job_name"] for record in submissions(runs)])
    names = {record["job_name"]: record["runs"] for record in submissions(runs)}
    found: dict[str, str] = {}
    for job_id, job in queue.items():
        (identity,) = names[job.name]
        assert identity not in found, "a run has two jobs"
        found[identity] = job_id
    return found


def test_a_submit_killed_between_two_runs_is_repeated_without_loss_or_double(
    tiny, runs, site, tmp_path, monkeypatch
):
    # The second sbatch waits until the submit has been killed, and then comes to its end.
    gate = "mkdir first 2>/dev/null || { touch waits; while [ ! -e go ]; do sleep 0.1; done; }"
    wrap_sbatch(tmp_path, monkeypatch, f"cd {tmp_path} && {gate}; cd - >/dev/null")
    sweep = tiny.sweep(seeds=[0, 1, 2, 3])
    cluster = site(max_array_size=1, options={"hold": True})  # four calls of sbatch
    submit = start(runs, "submit", sweep, "--cluster", cluster)
    wait_until((tmp_path / "waits").exists, submit)
    os.kill(submit.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    submit.communicate()
    wait_until(lambda: len(held(runs)) == 2)
    # As if it had died between sbatch and its note.
    record = next(each for each in submissions(runs) if each["job_id"])
    path = runs / "submissions" / record["token"] / "submission.json"
    path.write_text(path.read_text().replace(f'"{record["job_id"]}"', "null"))
    assert "queued" in experiments(runs, "status", "tiny")
    said = experiments(runs, "submit", sweep, "--cluster", cluster)
    assert "of a submit that was cut off" in said and "now 4 queued" in said
    assert len(held(runs)) == 4
    assert {folder.name for folder in run_folders(runs).values()} == set(held(runs))
    experiments(runs, "cancel", "tiny", "--all")
    wait_for_status(runs, "4 cancelled")


def test_a_partition_that_does_not_exist_is_one_clear_line(tiny, runs, site):
    sweep = tiny.sweep()
    said = experiments(runs, "submit", sweep, "--cluster", site(partition="moon"), status=1)
    assert "invalid partition specified: moon" in said and "'sinfo' lists" in said
    assert "Traceback" not in said and "None of them is queued" in said
    assert "1 not submitted" in experiments(runs, "status", "tiny")
    # Mended, the same command submits it, once.
    assert "1 of 1 runs submitted" in experiments(
        runs, "submit", sweep, "--cluster", site(options={"hold": True})
    )
    experiments(runs, "cancel", "tiny", "a")


def test_a_run_longer_than_its_time_limit_goes_on_until_it_is_done(limited):
    (folder,) = finished(limited, "limited").values()
    attempts = state(folder)["attempts"]
    assert len(attempts) > 1
    for before, after in itertools.pairwise(attempts):
        assert before["last"] == after["first"]
    assert attempts[-1]["last"] == 150
    assert len({attempt["job_id"] for attempt in attempts}) == 1


def test_a_node_that_dies_gives_its_run_to_the_other(tiny, runs, site, slurm):
    overrides = {**SLOW, **tiny.trouble(SECONDS=1.0), "SOLVER.CHECKPOINT_PERIOD": 3}
    experiments(runs, "submit", tiny.sweep(overrides=overrides), "--cluster", site())
    folder = wait_for_training(runs)
    wait_until(lambda: (folder / "last_checkpoint").exists())
    node = state(folder)["node"]
    slurm.stop_node(node)
    try:
        wait_until(lambda: len(state(folder)["attempts"]) == 2)
        wait_until(lambda: state(folder)["state"] == "running")
        first, second = state(folder)["attempts"]
        assert second["first"] >= 3 and second["first"] % 3 == 0
        assert first["job_id"] == second["job_id"]
        assert state(folder)["node"] != node
        finished(runs)
    finally:
        slurm.start_node(node)
