"""The command line: output, imports, and errors of wrong input."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.spec.sweep import sweep_names
from experiments.store.ledger import Ledger
from tests.experiments.records import write_json
from tests.experiments.tiny import ROOT, experiments


def test_list_shows_every_sweep_on_a_line():
    lines = experiments(Path("runs"), "list").splitlines()
    assert [line.split()[0] for line in lines] == sweep_names()


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["plan", "SWEEP"], ["status", "tiny"], ["report", "tiny"]]
)
def test_these_commands_never_import_torch(tiny, runs, words):
    ledger = Ledger(runs)
    run = {"id": "0" * 12, "name": "a", "row": "a", "cells": {"run": "a"}, "seed": 0}
    record = {"sweep": "tiny", "question": "?", "baseline": "a", "ranks": 1}
    runs_of_it = [{**run, "iterations": 6}]
    write_json(ledger.sweep_folder("tiny") / "sweep.json", {**record, "runs": runs_of_it})
    code = (
        "import sys; from experiments.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'detectron2', 'submitit', 'wandb'} & set(sys.modules)))"
    )
    words = [tiny.sweep() if word == "SWEEP" else word for word in words]
    done = subprocess.run([sys.executable, "-c", code, "--runs", str(runs), *words], cwd=ROOT)
    assert done.returncode == 0


def test_wrong_input_is_one_line_on_stderr(tiny, runs):
    cases = {
        ("plan", "dilated_encodr"): "did you mean 'dilated_encoder'",
        ("plan", "dilated_encoder", "--cluster", "moon"): "there is no cluster 'moon'",
        ("status", "dilated_encoder"): "nothing was submitted of sweep 'dilated_encoder'",
        ("report", "nothing"): "See what it would run",
        ("submit", tiny.sweep(), "b", "--cluster", "local"): "no run 'b'; did you mean 'a'?",
        ("submit", tiny.sweep(), "--cluster", "local", "--parallel", "0"): "expected 1 or more",
        ("submit", tiny.sweep(ranks=2), "--cluster", "debug"): "on one rank",
        ("submit", tiny.sweep(ranks=16), "--cluster", "local"): "is one machine of 8 ranks",
    }
    for words, expected in cases.items():
        said = experiments(runs, *words, status=1)
        assert said.startswith("error: ") and expected in said, said
        assert "Traceback" not in said


def test_a_machine_without_slurm(tiny, runs, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    said = experiments(runs, "submit", tiny.sweep(), status=1)
    assert "error: this machine has no SLURM" in said and "--cluster local" in said
    assert not (runs / "all").exists()


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ("AssocMaxSubmitJobLimit: Job violates accounting/QOS policy", "--limit"),
        ("Invalid account or account/partition combination", "lists under 'account'"),
        ("Invalid qos specification", "'sacctmgr show assoc"),
    ],
)
def test_a_refusal_of_sbatch_is_told_and_nothing_is_left_queued(
    tiny, runs, fake_slurm, answer, advice
):
    line = f"sbatch: error: Batch job submission failed: {answer}"
    fake_slurm(sbatch=f"echo '{line}' >&2; exit 1")
    said = experiments(runs, "submit", tiny.sweep(), "--cluster", "slurm", status=1)
    (error,) = [text for text in said.splitlines() if text.startswith("error: ")]
    assert answer in error and advice in error and "None of them is queued" in error
    assert "1 not submitted" in experiments(runs, "status", "tiny")


def test_a_slurm_that_does_not_answer_submits_nothing(tiny, runs, fake_slurm):
    complaint = "slurm_load_jobs error: Unable to contact slurm controller"
    refuse = f"echo '{complaint}' >&2; exit 1"
    fake_slurm(sbatch=refuse, squeue=refuse, sacct=refuse)
    ledger = Ledger(runs)
    sweep = tiny.sweep()
    experiments(runs, "submit", sweep, "--cluster", "slurm", status=1)
    (record,) = ledger.submissions()
    ledger.write_submission(record.model_copy(update={"job_id": "7", "error": ""}))
    said = experiments(runs, "submit", sweep, "--cluster", "slurm", status=1)
    assert "squeue failed: " + complaint in said
    assert len(list(ledger.submissions())) == 1
    table = experiments(runs, "status", "tiny")
    assert "1 queued" in table and complaint in table


def test_damaged_and_old_records_stop_their_run_and_no_other(tiny, runs):
    sweep = tiny.sweep(seeds=[0, 1])
    cluster = tiny.cluster()
    experiments(runs, "submit", sweep, "a,seed=0", "--cluster", cluster)
    (done,) = (runs / "all").glob("*/summary.json")
    (done.parent / "submission.json").write_text("{")
    said = experiments(runs, "submit", sweep, "--cluster", cluster)
    assert "1 of 2 runs submitted; now 1 finished, 1 unreadable" in said
    assert "submission.json is damaged" in said and "Move the file away" in said


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    said = experiments(tmp_path / "file", "submit", tiny.sweep(), "--cluster", "local", status=1)
    assert said.startswith("error: cannot write ") and "Expected a writable folder" in said


def test_a_pipe_that_is_closed_is_no_error(tmp_path):
    command = f"{sys.executable} -m experiments list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk, to fill it up")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_submits_nothing_and_loses_nothing(tiny, small_disk):
    sweep, cluster = tiny.sweep(), tiny.cluster()
    runs = small_disk / "runs"
    experiments(runs, "plan", sweep, "--cluster", cluster)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    said = experiments(runs, "submit", sweep, "--cluster", cluster, status=1)
    assert said.startswith("error: cannot ") and "No space left on device" in said, said
    assert not list((runs / "submissions").glob("*/jobs/*"))
    filler.unlink()
    said = experiments(runs, "submit", sweep, "--cluster", cluster)
    assert "1 of 1 runs submitted; now 1 finished" in said
