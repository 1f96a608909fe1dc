"""Estimate how long runs take, and the time limit to ask of a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.spec.cluster import Cluster
from experiments.store.records import Progress

OVERHEAD = 1.15
"""Evaluation, checkpoints and data on top of the iterations, as a share of their time."""

START_SECONDS = 120
"""Set aside for each start: imports, reading the annotations, the first iterations."""

SPARE_TIME_OUTS = 3
"""Time-outs allowed beyond what the estimate needs."""


@dataclass(frozen=True)
class Estimate:
    """Time of one iteration; ``seconds`` is None if it is unknown, ``source`` for the user."""

    seconds: float | None
    source: str


@dataclass(frozen=True)
class TimePlan:
    """Time limit and requeues of a job."""

    minutes: int  # time limit of one job
    time_outs: int  # after so many the run is not requeued any more
    sentence: str  # the arithmetic, for the user


def estimate_iteration(given: float | None, progresses: Iterable[Progress]) -> Estimate:
    """Estimate the time of an iteration: measured on runs of the sweep, else given by its file."""
    measured = [p.seconds_per_iteration for p in progresses if p.seconds_per_iteration]
    if measured:
        return Estimate(max(measured), f"slowest of {len(measured)} measured runs of this sweep")
    if given is not None:
        return Estimate(given, "the sweep file's guess; measured from the first run on")
    return Estimate(None, "unknown")


def run_seconds(estimate: Estimate, iterations: int) -> float | None:
    """Return the seconds that a run with so many iterations to go needs."""
    if estimate.seconds is None:
        return None
    return iterations * estimate.seconds * OVERHEAD + START_SECONDS


def plan_time(cluster: Cluster, estimate: Estimate, iterations: int) -> TimePlan:
    """Plan the time limit and time-outs for runs with at most so many iterations to go."""
    limit = cluster.time_limit_minutes
    needed = run_seconds(estimate, iterations)
    if needed is None:
        sentence = (
            f"time limit {limit} min; the time of an iteration is unknown, so up to 10 time-outs "
            "are requeued (resources.seconds_per_iteration in the sweep would tell)"
        )
        return TimePlan(limit, 10, sentence)
    minutes = min(limit, math.ceil(1.25 * needed / 60) + math.ceil(cluster.notice_seconds / 60))
    usable = max(60 * minutes - cluster.notice_seconds - START_SECONDS, 60)
    starts = math.ceil(max(needed - START_SECONDS, 1) / usable)
    time_outs = starts - 1 + SPARE_TIME_OUTS
    # submitit takes a signal for a time-out after min(80 %, all but 10 minutes) of the limit.
    guaranteed = min(0.8 * minutes, minutes - 10)
    if guaranteed < 30:
        time_outs += 10  # a preemption can come that early, and would count
    return TimePlan(
        minutes,
        time_outs,
        f"time limit {minutes} min; {iterations} iterations at {estimate.seconds:.3g} s "
        f"({estimate.source}) and the rest need about {format_duration(needed)}: "
        f"{starts} start{'s' if starts > 1 else ''}; up to {time_outs} time-outs are requeued",
    )


def format_duration(seconds: float | None) -> str:
    """Format a duration for people, such as ``3.5 h``."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"
