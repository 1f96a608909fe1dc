"""The states of a run, and an observation of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from experiments.store.records import Progress


class State(Enum):
    """State of a run, in the words of the tables."""

    MISSING = "not submitted"
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILED = "node failed"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    UNREADABLE = "unreadable"


ACTIVE = frozenset({State.QUEUED, State.RUNNING})
"""A job has the run: nothing is submitted."""

RETRIABLE = frozenset(State) - ACTIVE - {State.MISSING, State.FINISHED, State.UNREADABLE}
"""The run ended without finishing; ``retry`` goes on with it."""


def count_states(states: Iterable[State]) -> str:
    """Count states for people, such as ``3 running, 1 finished``."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])


@dataclass(frozen=True)
class Observation:
    """A run as it is now."""

    state: State
    reason: str = ""  # why it waits, or why it did not finish
    job_id: str | None = None  # of its cluster or process; None before it was submitted
    nodes: str = ""  # where it runs or ran
    executor: str = ""  # name of its backend
    progress: Progress = field(default_factory=Progress)  # empty before the run started
