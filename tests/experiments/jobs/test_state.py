from __future__ import annotations

from experiments.jobs.state import ACTIVE, RETRIABLE


def test_which_runs_are_left_alone_and_which_are_retried():
    assert {state.name for state in ACTIVE} == {"QUEUED", "RUNNING"}
    assert {state.name for state in RETRIABLE} == {
        "FAILED", "CANCELLED", "TIMED_OUT", "OUT_OF_MEMORY", "NODE_FAILED", "PREEMPTED",
        "INTERRUPTED", "LOST",
    }  # fmt: skip
