"""The state of a run, from its records and its cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from experiments.errors import ExperimentError
from experiments.jobs.backends import processes, slurm
from experiments.jobs.backends.processes import process_start
from experiments.jobs.backends.slurm_commands import STATES, Job, find_jobs
from experiments.jobs.observe import first_failure, observe
from experiments.jobs.state import Observation, State
from experiments.store.ledger import Ledger
from experiments.store.record_files import seconds
from experiments.store.records import Submission
from tests.experiments.records import write_json

RUN = "0123456789ab"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def submitted(ledger: Ledger, *, token: str = "t1", **record: object) -> None:
    """Record a submitted run, as ``submit`` does."""
    base = {
        "token": token, "sweep": "s", "executor": "slurm", "job_name": f"yolof.s.{token}",
        "job_id": "7", "runs": [RUN, "other"], "created": "2026-01-01T00:00:00Z", "host": "vm",
    }  # fmt: skip
    ledger.write_submission(Submission.model_validate({**base, **record}))
    ledger.claim(token, [RUN])


def wrote(ledger: Ledger, **content: object) -> None:
    """Write ``state.json``, as the job does."""
    record = {"token": "t1", "iteration": 5, "attempts": [], "evaluations": [], **content}
    write_json(ledger.run_folder(RUN) / "state.json", record)


def see(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, **jobs: Job) -> Observation:
    known = {f"7_{key[1:]}" if key != "job" else "7": job for key, job in jobs.items()}
    monkeypatch.setattr(slurm, "find_jobs", lambda *_: known)
    return observe(ledger, [RUN])[0][RUN]


def job(state: State, reason: str = "", nodes: str = "n1") -> Job:
    return Job(state, state.name, reason, nodes, "yolof.s.t1")


@pytest.mark.parametrize("state", sorted(set(STATES.values()), key=lambda state: state.name))
def test_each_state_of_a_job_whose_run_is_not_finished(ledger, monkeypatch, state):
    submitted(ledger)
    # A job that ended well has failed when its run is not finished.
    shown = State.FAILED if state is State.FINISHED else state
    assert see(ledger, monkeypatch, _0=job(state)).state is shown
    # A run that says it is finished is, whatever became of its job.
    wrote(ledger, state="finished")
    assert see(ledger, monkeypatch, _0=job(state)).state is State.FINISHED


def test_a_run_without_a_claim_is_missing(ledger, monkeypatch):
    assert see(ledger, monkeypatch).state is State.MISSING


def test_a_refused_submission_leaves_its_runs_missing_with_the_reason(ledger, monkeypatch):
    submitted(ledger, job_id=None, error="invalid partition")
    seen = see(ledger, monkeypatch)
    assert (seen.state, seen.reason) == (State.MISSING, "invalid partition")


def test_a_submit_that_was_cut_off_is_found_by_the_name_of_its_job(ledger, monkeypatch):
    submitted(ledger, job_id=None)
    assert see(ledger, monkeypatch).state is State.MISSING
    seen = see(ledger, monkeypatch, _0=job(State.QUEUED), _1=job(State.QUEUED))
    assert (seen.state, seen.job_id) == (State.QUEUED, "7_0")


def test_a_job_that_slurm_has_forgotten(ledger, monkeypatch):
    submitted(ledger)
    assert see(ledger, monkeypatch).state is State.LOST
    wrote(ledger, state="running")
    assert see(ledger, monkeypatch).state is State.LOST
    write_json(ledger.run_folder(RUN) / "failures" / "t1-7-0.json", {"time": 1.0, "reason": "why"})
    seen = see(ledger, monkeypatch)
    assert (seen.state, seen.reason) == (State.FAILED, "why")


def test_without_an_answer_of_slurm_nothing_is_called_missing(ledger, monkeypatch):
    def silent(*_):
        raise ExperimentError("squeue failed: Unable to contact slurm controller")

    submitted(ledger)
    monkeypatch.setattr(slurm, "find_jobs", silent)
    seen, remark = observe(ledger, [RUN])
    assert seen[RUN].state is State.QUEUED
    assert remark.startswith("squeue failed: Unable to contact")
    submitted(ledger, token="t2", job_id=None)
    assert observe(ledger, [RUN])[0][RUN].state is State.QUEUED


def test_what_an_earlier_submission_wrote_says_how_far_but_not_how_it_fares(ledger, monkeypatch):
    submitted(ledger, token="t1")
    wrote(ledger, state="failed", reason="old", kind="out of memory")
    submitted(ledger, token="t2")
    seen = see(ledger, monkeypatch, _0=job(State.RUNNING))
    assert (seen.state, seen.reason) == (State.RUNNING, "starting")
    assert seen.progress.iteration == 5


def test_the_first_rank_to_fail_gives_the_reason_and_not_the_echo(tmp_path):
    reports = [
        ("0", 3.0, "RuntimeError: [gloo] Connection closed by peer", ""),
        ("1", 5.0, "OutOfMemoryError: CUDA out of memory", "out of memory"),
        ("2", 6.0, "ValueError: later", ""),
    ]
    for rank, moment, reason, kind in reports:
        content = {"time": moment, "reason": reason, "kind": kind}
        write_json(tmp_path / "failures" / f"t1-7-{rank}.json", content)
    found = first_failure(tmp_path, "t1")
    assert found is not None and found.kind == "out of memory"
    for rank in ("1", "2"):
        (tmp_path / "failures" / f"t1-7-{rank}.json").unlink()
    found = first_failure(tmp_path, "t1")
    assert found is not None and "a rank was killed, or its node was lost" in found.reason
    assert first_failure(tmp_path, "t2") is None


@pytest.mark.parametrize("name", ["state.json", "submission.json"])
@pytest.mark.parametrize("content", ['{"format": 1, "tok', '{"format": 0}', "[]"])
def test_a_damaged_record_is_its_own_state(ledger, monkeypatch, name, content):
    submitted(ledger)
    (ledger.run_folder(RUN) / name).write_text(content)
    seen = see(ledger, monkeypatch)
    assert seen.state is State.UNREADABLE
    assert name in seen.reason and "Move the file away" in seen.reason


def test_a_damaged_submission_makes_its_runs_unreadable_and_no_others(ledger, monkeypatch):
    submitted(ledger)
    (ledger.submission_folder("t1") / "submission.json").write_text("{")
    assert see(ledger, monkeypatch).state is State.UNREADABLE
    ledger.write_submission(Submission(token="t2"))
    assert [record.token for record in ledger.submissions()] == ["t2"]


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ({}, State.FAILED),
        ({"state": "running"}, State.FAILED),
        ({"state": "failed", "kind": "out of memory"}, State.OUT_OF_MEMORY),
        ({"state": "failed", "kind": "timed out"}, State.TIMED_OUT),
        ({"state": "stopped", "reason": "SIGTERM"}, State.INTERRUPTED),
        ({"state": "finished"}, State.FINISHED),
    ],
)
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_run_whose_process_is_gone_or_job_failed(ledger, monkeypatch, content, state, executor):
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "vm")
    submitted(ledger, executor=executor, job_id="1", process_start="0")
    if content:
        wrote(ledger, **content)
    monkeypatch.setattr(slurm, "find_jobs", lambda *_: {"1_0": job(State.FAILED)})
    assert observe(ledger, [RUN])[0][RUN].state is state


def test_a_local_run_whose_process_lives_and_one_whose_number_was_given_away(ledger, monkeypatch):
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "vm")
    pid = str(os.getpid())
    submitted(ledger, executor="local", job_id=pid, process_start=process_start(pid))
    assert see(ledger, monkeypatch).state is State.RUNNING
    submitted(ledger, executor="local", job_id=pid, process_start="12345")
    assert see(ledger, monkeypatch).state is State.FAILED
    submitted(ledger, executor="local", job_id=None)  # the process has noted itself
    wrote(ledger, state="running", job_id=pid, process_start=process_start(pid))
    assert see(ledger, monkeypatch).state is State.RUNNING


SACCT = """\
cat <<END
7_0|RUNNING|None|n1|0:0|yolof.s.t1
7_1|CANCELLED by 1000|None|n2|0:15|yolof.s.t1
7_[2-3,5%4]|PENDING|Priority|None assigned|0:0|yolof.s.t1
7_6|FAILED|NonZeroExitCode|n1|1:0|yolof.s.t1
7_7|TELEPORTING|None|n1|0:0|yolof.s.t1
END
"""


def test_the_queue_is_newer_than_the_accounting(fake_slurm):
    queue = ("7_0|PENDING|BeginTime||yolof.s.t1", "9|RUNNING|None|n4|another")
    fake_slurm(sacct=SACCT, squeue="\n".join(f"echo '{line}'" for line in queue))
    jobs = find_jobs(["7"])
    assert jobs["7_0"] == Job(State.QUEUED, "PENDING", "BeginTime", "", "yolof.s.t1")
    assert (jobs["7_1"].state, jobs["7_1"].reason) == (State.CANCELLED, "signal 15")
    assert {key for key in jobs if jobs[key].state is State.QUEUED} == {"7_0", "7_2", "7_3", "7_5"}
    assert jobs["7_6"].reason == "NonZeroExitCode"
    assert jobs["7_7"].state is State.RUNNING  # a state of a newer SLURM
    assert "9" not in jobs


def test_accounting_is_asked_in_local_time(fake_slurm, tmp_path, monkeypatch):
    fake_slurm(sacct=f'echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        find_jobs(names=["x"], since=seconds("2026-01-15T12:01:00Z"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "-S 2026-01-15T07:00:00" in (tmp_path / "asked").read_text()


def test_no_slurm_here_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExperimentError, match=r"no SLURM \(no sbatch.*--cluster local"):
        find_jobs(["7"])


def test_each_run_of_an_array_is_judged_by_its_own_task(ledger, monkeypatch):
    submitted(ledger, runs=["other", RUN])
    ledger.claim("t1", ["other", RUN])
    seen = see(ledger, monkeypatch, _0=job(State.RUNNING), _1=job(State.QUEUED))
    assert (seen.state, seen.job_id) == (State.QUEUED, "7_1")


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ({"state": "running"}, State.RUNNING),
        ({"state": "stopped"}, State.INTERRUPTED),
        ({"state": "failed"}, State.FAILED),
        ({}, State.FAILED),
    ],
)
@pytest.mark.parametrize("lives", [True, False])
def test_a_run_on_another_host_is_not_judged_by_the_processes_here(
    ledger, monkeypatch, content, state, lives
):
    pid = str(os.getpid())
    start = process_start(pid) if lives else "0"
    submitted(ledger, executor="local", job_id=pid, process_start=start, host="elsewhere")
    wrote(ledger, **content)
    seen = see(ledger, monkeypatch)
    assert seen.state is state
    assert state is not State.RUNNING or "on elsewhere, which cannot be asked" in seen.reason
