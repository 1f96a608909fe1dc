"""The common base of the local and the debug backend: runs as processes of this machine."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from experiments.errors import ExperimentError
from experiments.jobs.state import Observation, State
from experiments.store.ledger import Ledger
from experiments.store.records import Submission

from .base import Backend, ClaimedRun, Watch


class ProcessBackend(Backend):
    """Observes and cancels processes; how they start is left to subclasses."""

    outlives_failure: ClassVar[bool] = False  # the process goes on, with other runs

    def watch(self, submissions: Sequence[Submission]) -> Watch:
        return _ProcessWatch(self)

    def cancel(self, ledger: Ledger, submission: Submission, job_ids: Sequence[str]) -> None:
        if submission.host != socket.gethostname():
            raise ExperimentError(
                f"the run is a process of {submission.host}, this is {socket.gethostname()}; "
                "cancel it there"
            )
        ledger.write_submission(submission.model_copy(update={"cancelled": True}))
        for job_id in job_ids:
            os.kill(int(job_id), signal.SIGTERM)


class _ProcessWatch(Watch):
    def __init__(self, backend: ProcessBackend):
        self._backend = backend

    def observe(self, run: ClaimedRun) -> Observation:
        submission, current = run.submission, run.current
        # If a submit was killed before it noted its process, the process itself has.
        known = submission if submission.job_id else current
        job_id = known.job_id

        def seen(state: State, reason: str = "") -> Observation:
            place = (job_id, submission.host, self._backend.name)
            return Observation(state, reason, *place, run.progress)

        if not job_id:
            return seen(State.MISSING, "being submitted, or cut off")
        if submission.host != socket.gethostname():
            if current.state in ("starting", "running"):
                reason = f"on {submission.host}, which cannot be asked from here"
                return seen(State.RUNNING, reason)
        else:
            left = self._backend.outlives_failure and run.has_failed
            start = known.process_start
            if not left and start is not None and process_start(job_id) == start:
                return seen(State.RUNNING, run.doing)
        if submission.cancelled:
            return seen(State.CANCELLED)
        if run.has_failed:
            return seen(run.failure_state, current.reason)
        if current.state == "stopped":
            return seen(State.INTERRUPTED, current.reason)
        return seen(State.FAILED, run.last_words() or "its process ended without a word")


def process_start(pid: str) -> str | None:
    """Return when a process started, in clock ticks since boot; None if there is none.

    The system reuses process ids, but not an id together with its start.
    """
    try:
        text = Path("/proc", pid, "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
