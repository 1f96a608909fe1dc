"""The state of each run, from its own records and from what its cluster says."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError, RecordError
from experiments.store.files import read_json, seconds
from experiments.store.ledger import Ledger

from .backends.slurm_commands import Job, Phase, find_jobs
from .logs import job_files, last_error_line


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

RETRIABLE = frozenset(
    {
        State.FAILED,
        State.CANCELLED,
        State.TIMED_OUT,
        State.OUT_OF_MEMORY,
        State.NODE_FAILED,
        State.PREEMPTED,
        State.INTERRUPTED,
        State.LOST,
    }
)
"""It ended without finishing; ``retry`` goes on with it."""

_FROM_PHASE = {
    Phase.QUEUED: State.QUEUED,
    Phase.RUNNING: State.RUNNING,
    Phase.FAILED: State.FAILED,
    Phase.CANCELLED: State.CANCELLED,
    Phase.TIMED_OUT: State.TIMED_OUT,
    Phase.OUT_OF_MEMORY: State.OUT_OF_MEMORY,
    Phase.NODE_FAILED: State.NODE_FAILED,
    Phase.PREEMPTED: State.PREEMPTED,
}


@dataclass(frozen=True)
class Observation:
    """A run as it is now.

    Attributes:
        state: see :class:`State`.
        reason: why it waits, or why it did not finish; may be empty.
        job_id: of its cluster, or of the process on ``host``; None before it was submitted.
        nodes: where it runs or ran.
        executor: ``slurm``, ``local`` or ``debug``.
        progress: ``state.json``, empty before the run started.
    """

    state: State
    reason: str = ""
    job_id: str | None = None
    nodes: str = ""
    executor: str = ""
    progress: dict[str, Any] = field(default_factory=dict)


def observe(ledger: Ledger, identities: Sequence[str]) -> tuple[dict[str, Observation], str]:
    """Observe runs; changes nothing.

    Returns:
        Run id -> observation; and a remark for the user where SLURM could not be asked.
    """
    observer = _Observer(ledger, identities)
    return {identity: observer.observe(identity) for identity in identities}, observer.remark


class _Observer:
    def __init__(self, ledger: Ledger, identities: Sequence[str]):
        self._ledger = ledger
        self._claims: dict[str, dict[str, Any]] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._damaged: dict[str, str] = {}
        for identity in identities:
            try:
                self._claims[identity] = ledger.read_claim(identity) or {}
                self._states[identity] = ledger.read_state(identity) or {}
            except RecordError as error:
                self._damaged[identity] = str(error)
        self._submissions: dict[str, dict[str, Any]] = {}
        for token in {claim["token"] for claim in self._claims.values() if claim}:
            try:
                self._submissions[token] = ledger.read_submission(token) or {}
            except RecordError as error:
                self._damaged.update(
                    (identity, str(error))
                    for identity, claim in self._claims.items()
                    if claim.get("token") == token
                )
        self.remark = ""
        self._jobs = self._ask_slurm()

    def _ask_slurm(self) -> dict[str, Job]:
        open_tokens = {
            claim["token"]
            for identity, claim in self._claims.items()
            if claim and self._states.get(identity, {}).get("state") != "finished"
        }
        asked = [
            record
            for token, record in self._submissions.items()
            if token in open_tokens and record.get("executor") == "slurm"
        ]
        ids = [record["job_id"] for record in asked if record.get("job_id")]
        # Without an id: its submit was killed, before or after SLURM had taken it.
        orphans = [r for r in asked if not r.get("job_id") and not r.get("error")]
        since = min((seconds(record["created"]) for record in orphans), default=None)
        try:
            jobs = find_jobs(ids, [record["job_name"] for record in orphans], since)
        except ExperimentError as error:
            self.remark = f"{error}\nWhat is shown is what the runs themselves last wrote."
            return {}
        for record in orphans:
            named = [each for each, job in jobs.items() if job.name == record["job_name"]]
            if named:
                record["job_id"] = named[0].split("_")[0]
        return jobs

    def observe(self, identity: str) -> Observation:
        if identity in self._damaged:
            advice = "Move the file away after a look at squeue, then submit again"
            return Observation(State.UNREADABLE, f"{self._damaged[identity]}. {advice}")
        claim, progress = self._claims[identity], self._states[identity]
        if not claim:
            return Observation(State.MISSING)
        record = self._submissions.get(claim["token"], {})
        executor = record.get("executor", "")
        if progress.get("state") == "finished":
            job_id = progress.get("job_id")
            nodes = progress.get("node", "")
            return Observation(State.FINISHED, "", job_id, nodes, executor, progress)
        if record.get("error"):
            return Observation(State.MISSING, record["error"], progress=progress)
        # What another submission's job wrote says how far the run came, not how it fares now.
        current = progress if progress.get("token") == claim["token"] else {}
        failure = first_failure(self._ledger.run_folder(identity), claim["token"])
        if failure is not None:
            current = {**current, **failure, "state": "failed"}
        if executor == "slurm":
            return self._observe_slurm(claim, record, current, progress)
        return self._observe_process(claim, record, current, progress)

    def _observe_slurm(
        self, claim: dict, record: dict, current: dict, progress: dict
    ) -> Observation:
        base = record.get("job_id")
        if not base:
            if self.remark:
                return Observation(
                    State.QUEUED, "submitted? SLURM was not asked", None, "", "slurm"
                )
            return Observation(State.MISSING, "being submitted, or cut off", progress=progress)
        single = len(record["runs"]) == 1
        job_id = base if single else f"{base}_{claim['index']}"
        job = self._jobs.get(job_id)
        nodes = (job.nodes if job else "") or current.get("node", "")

        def seen(state: State, reason: str = "") -> Observation:
            return Observation(state, reason, job_id, nodes, "slurm", progress)

        if job is None:
            if self.remark:
                running = current.get("state") in ("starting", "running")
                return seen(State.RUNNING if running else State.QUEUED, "SLURM was not asked")
            if current.get("state") == "failed":
                return seen(_failure_state(current), current.get("reason", ""))
            return seen(State.LOST, "SLURM no longer knows its job, which left no end")
        if job.phase is Phase.COMPLETED:
            return seen(
                State.FAILED, self._why(job, claim, record, current) or "ended before it was done"
            )
        state = _FROM_PHASE[job.phase]
        if state is State.FAILED and current.get("state") == "failed":
            state = _failure_state(current)
        if state is State.FAILED and current.get("state") == "stopped":
            state = State.INTERRUPTED  # by SIGTERM alone: it saved, and ended before SLURM did
        if state is State.QUEUED:
            return seen(state, job.reason)
        if state is State.RUNNING:
            return seen(state, _doing(current))
        return seen(state, self._why(job, claim, record, current))

    def _why(self, job: Job, claim: dict, record: dict, current: dict) -> str:
        if current.get("reason"):
            return current["reason"]
        last = last_error_line(job_files(self._ledger, claim, record))
        return ": ".join(filter(None, [job.reason, last]))

    def _observe_process(
        self, claim: dict, record: dict, current: dict, progress: dict
    ) -> Observation:
        executor, host = record.get("executor", ""), record.get("host", "")
        # A submit that was killed did not note the process that it had started, which did itself.
        known = record if record.get("job_id") else current
        job_id = known.get("job_id")

        def seen(state: State, reason: str = "") -> Observation:
            return Observation(state, reason, job_id, host, executor, progress)

        if not job_id:
            return seen(State.MISSING, "being submitted, or cut off")
        if host != socket.gethostname():
            if current.get("state") in ("starting", "running"):
                return seen(State.RUNNING, f"on {host}, which cannot be asked from here")
        else:
            # A process that runs one after the other goes on when one of them has failed.
            left = executor == "debug" and current.get("state") == "failed"
            if not left and process_lives(job_id, known.get("process_start")):
                return seen(State.RUNNING, _doing(current))
        if record.get("cancelled"):
            return seen(State.CANCELLED)
        if current.get("state") == "failed":
            return seen(_failure_state(current), current.get("reason", ""))
        if current.get("state") == "stopped":
            return seen(State.INTERRUPTED, current.get("reason", ""))
        last = last_error_line(job_files(self._ledger, claim, record))
        return seen(State.FAILED, last or "its process ended without a word")


def _failure_state(current: dict[str, Any]) -> State:
    kinds = {"out of memory": State.OUT_OF_MEMORY, "timed out": State.TIMED_OUT}
    return kinds.get(current.get("kind", ""), State.FAILED)


# What the other ranks say when one has failed.
_ECHOES = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "process group")


def first_failure(run_folder: Path, token: str) -> dict[str, Any] | None:
    """How a start failed: of the failures that its ranks wrote, the one that came first.

    Returns:
        ``reason`` and ``kind``; None where no rank failed.
    """
    failures = []
    for path in (run_folder / "failures").glob(f"{token}-*.json"):
        with suppress(RecordError):
            failures.append(read_json(path) or {})

    def order(failure: dict[str, Any]) -> tuple[bool, float]:
        return _is_echo(failure), failure.get("time", 0.0)

    first = min(failures, key=order, default=None)
    if first is not None and _is_echo(first):
        said = f"rank {first.get('rank')} says: {first['reason']}"
        first["reason"] = f"a rank was killed, or its node was lost, without a word; {said}"
    return first


def _is_echo(failure: dict[str, Any]) -> bool:
    return any(echo in str(failure.get("reason", "")).lower() for echo in _ECHOES)


def _doing(current: dict[str, Any]) -> str:
    """What a run is about that has a job but does not train."""
    state = current.get("state", "starting")
    return "" if state == "running" else current.get("reason") or state


def process_lives(pid: str, start: str | None) -> bool:
    """Whether a process of this machine still runs, and is the one that was started then."""
    return start is not None and process_start(pid) == start


def process_start(pid: str) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none.

    Process ids are used again; an id together with its start is not.
    """
    try:
        text = Path("/proc", pid, "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
