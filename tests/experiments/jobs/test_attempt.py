from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from submitit.core.utils import UncompletedJobError

from experiments.errors import ExperimentError
from experiments.jobs import attempt as attempts
from experiments.jobs.attempt import Attempt, ReportProgress
from experiments.jobs.rank import SUPERSEDED, run_rank
from experiments.store.ledger import Ledger
from experiments.store.records import Progress, Submission
from tests.experiments.records import read_json, write_json


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    """Run ``r`` is claimed for submission ``t``, whose job this process is."""
    ledger = Ledger(tmp_path)
    ledger.write_submission(Submission(token="t", runs=["r"]))
    ledger.claim("t", ["r"])
    monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "1")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    return ledger


def start(ledger: Ledger, *spans: tuple[int, int], token: str = "t", **progress) -> Attempt:
    """An attempt after earlier ones, whose first and last iterations are given."""
    before = [{"token": token, "first": first, "last": last} for first, last in spans]
    content = {"token": token, "iteration": 9, "attempts": before, **progress}
    write_json(ledger.run_folder("r") / "state.json", content)
    return Attempt(str(ledger.root), "r", "t")


def written(ledger: Ledger) -> Progress:
    progress = ledger.read_progress("r")
    assert progress is not None
    return progress


def test_starts_that_get_nowhere_are_given_up(ledger):
    assert start(ledger, (0, 0), (0, 0), (0, 0), (0, 0)).begin()
    assert start(ledger, (0, 0), (0, 0), (0, 0), (0, 9), (9, 9)).begin()
    fruitless = [(0, 9), *[(9, 9)] * 5]
    with pytest.raises(ExperimentError, match="5 starts in a row did not reach a new iteration"):
        start(ledger, *fruitless).begin()
    assert start(ledger, *fruitless, token="before the retry").begin()


def test_a_start_is_noted_behind_the_earlier_ones_and_their_failures_go(ledger):
    attempt = start(ledger, (0, 4), (4, 9))
    write_json(attempt.failure_file(3), {"reason": "of the start before"})
    assert attempt.begin()
    progress = written(ledger)
    assert [(each.first, each.last) for each in progress.attempts] == [(0, 4), (4, 9), (9, 9)]
    assert (progress.state, progress.iteration, progress.token) == ("starting", 9, "t")
    assert not attempt.failure_file(3).exists()


def test_a_run_that_was_given_away_or_that_nobody_claims_is_left_alone(ledger):
    attempt = start(ledger, (0, 9))
    before = written(ledger)
    ledger.claim("another", ["r"])
    assert not attempt.begin() and run_rank(str(ledger.root), "r", "t") == SUPERSEDED
    (ledger.run_folder("r") / "submission.json").unlink()
    assert not attempt.begin()
    assert written(ledger) == before


def test_a_job_looks_for_its_claim_under_the_lock(ledger, monkeypatch):
    held = []

    @contextmanager
    def lock(_: Ledger) -> Iterator[None]:
        held.append(True)
        yield
        held.clear()

    monkeypatch.setattr(Ledger, "lock", lock)
    monkeypatch.setattr(Attempt, "is_superseded", lambda _: not held)
    assert start(ledger).begin()


def test_evaluations_after_the_checkpoint_are_forgotten_as_they_come_again(ledger):
    attempt = start(ledger, (0, 19), evaluations=[[5, 1.0], [10, 2.0], [15, 3.0]])
    attempt.begin()
    hook = ReportProgress(attempt)
    hook.trainer = SimpleNamespace(start_iter=10, max_iter=20)
    hook.before_train()
    progress = written(ledger)
    assert progress.evaluations == [(5, 1.0), (10, 2.0)]
    assert (progress.state, progress.iteration, progress.attempts[-1].first) == ("running", 10, 10)


def test_a_disk_that_is_full_for_a_while_does_not_end_a_run(ledger, monkeypatch, caplog):
    def refuse(*_):
        raise ExperimentError("no space left")

    attempt = start(ledger)
    monkeypatch.setattr(attempts, "write_record", refuse)
    attempt.report(state="running")
    assert "no space left; training goes on" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (MemoryError("of the host"), "out of memory", "MemoryError: of the host"),
        (UncompletedJobError("3 time-outs"), "timed out", "3 time-outs"),
        (ExperimentError("one line\nmore"), "", "one line"),
        (ZeroDivisionError(), "", "ZeroDivisionError: "),
    ],
)
def test_how_a_rank_failed_is_noted(ledger, error, kind, reason):
    attempt = start(ledger)
    attempt.fail(error)
    noted = read_json(attempt.failure_file(attempt.rank))
    assert (noted["kind"], noted["reason"]) == (kind, reason)
