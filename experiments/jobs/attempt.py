"""One start of a job: the identity of this rank, and the records that it writes."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import submitit
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from submitit.core.utils import UncompletedJobError

from experiments.errors import ExperimentError
from experiments.store.ledger import Ledger
from experiments.store.record_files import now, write_record
from experiments.store.records import AttemptSpan, Failure, Progress, Submission
from yolof_d2.errors import UserError

from .backends.processes import process_start

logger = logging.getLogger("yolof_d2.experiments")

_REPORT_SECONDS = 10.0  # between two writings of state.json
_FRUITLESS_ATTEMPTS = 5  # in a row without one iteration, after which a run is given up


class Attempt:
    """One start of a job, as one of its ranks sees it."""

    def __init__(self, root: str, identity: str, token: str):
        self.ledger = Ledger(Path(root))
        self.identity = identity
        self.token = token
        self.folder = self.ledger.run_folder(identity)
        self.submission = self.ledger.read_submission(token) or Submission(token=token)
        self.env = submitit.JobEnvironment()
        self.rank, self.ranks = self.env.global_rank, self.env.num_tasks
        self.ranks_per_node = self.ranks // self.env.num_nodes
        # Unique to this start of this job. SLURM keeps the id of a requeued job and counts its
        # restarts; submitit's local jobs are never restarted while an old process is left.
        self.name = f"{self.env.job_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        self.progress = Progress()  # what rank 0 wrote last

    def is_superseded(self) -> bool:
        """Whether another submission has claimed the run since."""
        claim = self.ledger.read_claim(self.identity)
        return claim is None or claim.token != self.token

    def begin(self) -> bool:
        """Record this start, on rank 0; False if the run is no longer claimed for this job.

        Raises:
            ExperimentError: the last starts did not reach a new iteration.
        """
        with ExitStack() as stack:
            # Under the lock, so that a submit sees either this start or a run that is free, and
            # this job either its claim or that of the submit.
            try:
                stack.enter_context(self.ledger.lock())
            except ExperimentError as error:  # a disk without locks must not stop the run
                logger.warning("%s", error)
            if self.is_superseded():
                return False
            self._note_attempt()
        return True

    def _note_attempt(self) -> None:
        before = self.ledger.read_progress(self.identity) or Progress()
        fruitless = 0
        for attempt in reversed(before.attempts):
            if attempt.token != self.token or attempt.last > attempt.first:
                break
            fruitless += 1
        if fruitless >= _FRUITLESS_ATTEMPTS:
            raise ExperimentError(
                f"{fruitless} starts in a row did not reach a new iteration; given up. Look at the "
                "log, then 'retry'. A notice or a time limit too short for one iteration does this"
            )
        for path in (self.folder / "failures").glob("*.json"):
            path.unlink(missing_ok=True)
        # submitit refuses to requeue when an earlier attempt was killed while it wrote this.
        for path in self.env.paths.folder.glob(f"{self.env.job_id}_*.save_tmp"):
            path.unlink(missing_ok=True)
        done = before.iteration or 0
        job = {"token": self.token, "job_id": self.env.job_id}
        span = AttemptSpan(**job, started=now(), first=done, last=done)
        self.progress = before
        self.report(
            **job,
            process_start=process_start(self.env.job_id),
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            state="starting",
            reason="",
            kind="",
            iteration=done,
            attempts=[*before.attempts, span],
        )

    def report(self, **changes: Any) -> None:
        """Write ``state.json``, on rank 0. A full disk does not end the run."""
        progress = self.progress.model_copy(update={**changes, "updated": now()})
        if progress.attempts:
            *earlier, last = progress.attempts
            last = last.model_copy(update={"last": progress.iteration})
            progress = progress.model_copy(update={"attempts": [*earlier, last]})
        self.progress = progress
        try:
            write_record(self.folder / "state.json", progress)
        except ExperimentError as error:
            logger.warning("%s; training goes on", error)

    def failure_file(self, rank: int) -> Path:
        """Return the file in which a rank records its failure."""
        return self.folder / "failures" / f"{self.token}-{self.name}-{rank}.json"

    def fail(self, error: BaseException) -> None:
        """Record a failure, on any rank, for ``status``."""
        kind = "timed out" if isinstance(error, UncompletedJobError) else ""
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            kind = "out of memory"
        line = (str(error).strip().splitlines() or [""])[0]
        own = isinstance(error, (UserError, UncompletedJobError))
        failure = Failure(
            rank=self.rank,
            time=time.time(),
            kind=kind,
            reason=(line if own else f"{type(error).__name__}: {line}")[:500],
            traceback="".join(traceback.format_exception(error)),
        )
        try:
            write_record(self.failure_file(self.rank), failure)
        except ExperimentError as problem:
            logger.warning("%s", problem)


class ReportProgress(HookBase):
    """Updates ``state.json`` from Detectron2's event storage, on rank 0."""

    def __init__(self, attempt: Attempt):
        self._attempt = attempt
        self._written = 0.0

    def before_train(self) -> None:
        first = self.trainer.start_iter
        progress = self._attempt.progress
        *earlier, span = progress.attempts
        self._attempt.report(
            state="running",
            iteration=first,
            max_iteration=self.trainer.max_iter,
            attempts=[*earlier, span.model_copy(update={"first": first})],
            # Later evaluations are repeated.
            evaluations=[point for point in progress.evaluations if point[0] <= first],
        )

    def after_step(self) -> None:
        if time.monotonic() - self._written >= _REPORT_SECONDS or self.trainer.agreed_stop:
            self._report(self.trainer.iter + 1)

    def after_train(self) -> None:  # after an error too
        if self.trainer.iter >= self.trainer.max_iter:
            self._report(self.trainer.max_iter)

    def _report(self, done: int) -> None:
        storage = get_event_storage()
        latest = storage.latest()
        changes: dict[str, Any] = {"iteration": done}
        evaluations = self._attempt.progress.evaluations
        if "bbox/AP" in latest:
            ap, iteration = latest["bbox/AP"]
            point = (min(iteration + 1, self.trainer.max_iter), None if math.isnan(ap) else ap)
            if point not in evaluations:
                changes["evaluations"] = [*evaluations, point]
        timed = storage.histories().get("time")
        if timed is not None:
            seconds = timed.median(20)
            changes["seconds_per_iteration"] = seconds
            changes["eta_seconds"] = seconds * (self.trainer.max_iter - done)
        peaks = {
            kind: round(latest[name][0])
            for kind in ("process", "allocated", "reserved")
            if (name := f"train/memory_{kind}_mib") in latest
        }
        if peaks:
            changes["peak_memory_mib"] = peaks
        self._attempt.report(**changes)
        self._written = time.monotonic()
