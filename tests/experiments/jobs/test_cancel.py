from __future__ import annotations

from tests.experiments.tiny import (
    SLOW,
    checkpoint_iteration,
    experiments,
    is_training,
    run_folders,
    start,
    state,
)
from tests.waiting import CAP, wait_until


def test_cancel_saves_and_retry_goes_on(tiny, runs):
    sweep = tiny.sweep(overrides={**SLOW, **tiny.trouble(SECONDS=1.0)})
    cluster = tiny.cluster()
    submit = start(runs, "submit", sweep, "--cluster", cluster)
    wait_until(lambda: any(map(is_training, (runs / "all").glob("*"))))
    assert "cancelled a" in experiments(runs, "cancel", "tiny", "a")
    submit.communicate(timeout=CAP)
    assert "1 cancelled" in experiments(runs, "status", "tiny")
    folder = run_folders(runs)["a"]
    first = checkpoint_iteration(folder) + 1
    assert 0 < first < 40
    assert "now 1 finished" in experiments(runs, "retry", sweep, "--cluster", cluster)
    assert state(folder)["attempts"][1]["first"] == first
