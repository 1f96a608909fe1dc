"""Time limits and time-outs: figures worked out by hand, and a simulated cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.jobs.estimate import (
    OVERHEAD,
    START_SECONDS,
    Estimate,
    estimate_iteration,
    format_duration,
    plan_time,
    run_seconds,
)
from experiments.spec.cluster import Cluster
from experiments.store.records import Progress


def cluster(limit: int, notice: int = 300) -> Cluster:
    return Cluster(executor="slurm", time_limit_minutes=limit, notice_seconds=notice)


def test_measured_before_guessed_before_unknown():
    running = [Progress(seconds_per_iteration=value) for value in (0.5, None, 0.7)]
    assert estimate_iteration(9.0, running).seconds == 0.7
    assert "2 measured runs" in estimate_iteration(9.0, running).source
    assert estimate_iteration(9.0, [Progress()]).seconds == 9.0
    assert estimate_iteration(None, []).seconds is None


def test_the_published_schedule_in_a_day_and_in_four_hours():
    # 22,500 iterations at 1.5 s: 33,750 s, with 15 % and 120 s for the start 38,932 s, 10.8 h.
    guess = Estimate(1.5, "guess")
    assert run_seconds(guess, 22_500) == pytest.approx(38_932.5)
    day = plan_time(cluster(24 * 60), guess, 22_500)
    assert (day.minutes, day.time_outs) == (817, 3)  # 1.25 * 38,932 s = 812 min, and 5 of notice
    # Of 240 minutes 14,400 - 300 - 120 = 13,980 s are of use: 38,812 s take three starts.
    short = plan_time(cluster(4 * 60), guess, 22_500)
    assert (short.minutes, short.time_outs) == (240, 2 + 3)
    assert "3 starts" in short.sentence


def test_preemptions_that_count_as_time_outs_are_allowed_for():
    # submitit: timed out from min(0.8 T, T - 10 min); for T = 10 that is at once.
    assert plan_time(cluster(10, 60), Estimate(0.1, ""), 100).time_outs == 13
    # For T = 35 at 25 minutes. 115,000 s take 69 starts of 1,680 s, or 37 of 3,180 s.
    assert plan_time(cluster(35), Estimate(1.0, ""), 100_000).time_outs == 68 + 3 + 10
    assert plan_time(cluster(60), Estimate(1.0, ""), 100_000).time_outs == 36 + 3


def test_nothing_known():
    plan = plan_time(cluster(600), Estimate(None, "unknown"), 100)
    assert (plan.minutes, plan.time_outs) == (600, 10)
    assert "unknown" in plan.sentence


@given(
    limit=st.integers(15, 2000),
    seconds=st.floats(0.05, 5),
    iterations=st.integers(1, 300_000),
    notice=st.integers(10, 300),
)
def test_a_run_that_is_as_slow_as_estimated_ends_before_its_time_outs(
    limit, seconds, iterations, notice
):
    plan = plan_time(cluster(limit, notice), Estimate(seconds, ""), iterations)
    assert 1 <= plan.minutes <= limit
    left, time_outs = iterations * seconds * OVERHEAD, 0
    while left > 0:
        left -= max(60 * plan.minutes - notice - START_SECONDS, 60)
        time_outs += left > 0
    assert time_outs <= plan.time_outs


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (600, "10 min"), (9000, "2.5 h"), (259_200, "3.0 d"), (None, "?")],
)
def test_durations_for_people(seconds, text):
    assert format_duration(seconds) == text
