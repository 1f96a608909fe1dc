"""Submit runs: claim them, hand them to the backend, record the job id.

The order makes it safe to be killed anywhere. First the submission is recorded, under a token that
is also in the job's name; then its runs are claimed for it; then it is handed over; then the job id
is recorded. If that last record is missing, the next command finds the job by its name. A job
trains a run only while the run is claimed for its token, so that an unknown job does nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.spec.cluster import Cluster
from experiments.spec.resolve import ResolvedRun, run_record, sweep_record
from experiments.spec.sweep import LoadedSweep
from experiments.store.ledger import Ledger
from experiments.store.record_files import now
from experiments.store.records import Submission
from experiments.store.snapshot import take_snapshot

from .backends import BACKENDS, Backend, Site, StartedJob
from .estimate import TimePlan, estimate_iteration, format_duration, plan_time
from .observe import observe
from .state import Observation, State

logger = logging.getLogger(__name__)

Wanted = Callable[[ResolvedRun, Observation], bool]

_POLL_SECONDS = 0.5
_SAY_SECONDS = 20.0


class Launcher:
    """Submits runs of one sweep to one cluster."""

    def __init__(
        self, ledger: Ledger, loaded: LoadedSweep, resolved: Sequence[ResolvedRun],
        cluster_name: str, cluster: Cluster,
    ):  # fmt: skip
        """Raise an ExperimentError if the cluster is not here, or cannot run this sweep."""
        self.ledger = ledger
        self.loaded = loaded
        self.resolved = list(resolved)
        self.backend: Backend = BACKENDS[cluster.executor]
        self.site = Site(cluster_name, cluster, loaded.name, loaded.sweep.resources.ranks)
        self.backend.check(self.site)
        self._said = time.monotonic()

    def submit(self, wanted: Wanted, *, restart: bool = False) -> list[ResolvedRun]:
        """Submit the runs that are wanted now, and return them; with ``restart``, from iteration 0.

        ``wanted`` is called under the lock with a run and its observation.

        Raises:
            ExperimentError: nothing was submitted, or not all; the message says why.
        """
        submit = self._fill_queue if self.backend.queues else self._run_in_turn
        return submit(wanted, restart)

    def _fill_queue(self, wanted: Wanted, restart: bool) -> list[ResolvedRun]:
        with self.ledger.lock():
            self._adopt_orphans()
            self._record_sweep()
            seen = self._observe()
            chosen = [each for each in self.resolved if wanted(each, seen[each.id])]
            if not chosen:
                return []
            plan = self._plan(chosen, seen)
            logger.info("%s", plan.sentence[0].upper() + plan.sentence[1:])
            code = take_snapshot(self.ledger.code)
            size = self.site.cluster.max_array_size
            for start in range(0, len(chosen), size):
                runs = chosen[start : start + size]
                job = self._hand_over(runs, code, restart, plan)
                many = "s" if len(runs) > 1 else ""
                logger.info("Job %s: %d run%s", job.job_id, len(runs), many)
            return chosen

    def _run_in_turn(self, wanted: Wanted, restart: bool) -> list[ResolvedRun]:
        """Start runs, some at a time, and wait for them; other commands may share the work."""
        with self.ledger.lock():
            self._record_sweep()
        code = take_snapshot(self.ledger.code)
        slots: dict[int, StartedJob | None] = dict.fromkeys(range(self.backend.parallel(self.site)))
        started: list[ResolvedRun] = []
        try:
            for each in self.resolved:
                while not (free := [n for n, job in slots.items() if not job or job.is_done()]):
                    self._wait(started)
                with self.ledger.lock():
                    seen = self._observe()
                    if not wanted(each, seen[each.id]):
                        continue
                    plan = self._plan([each], seen)
                    slots[free[0]] = self._hand_over([each], code, restart, plan, free[0])
                logger.info("%s  %s", each.id, each.run.name)
                started.append(each)
            while any(job is not None and not job.is_done() for job in slots.values()):
                self._wait(started)
        except KeyboardInterrupt:
            raise ExperimentError(
                "interrupted: what runs was told to stop, what waited was not started. "
                "'submit' starts the rest, 'retry' goes on with the interrupted ones"
            ) from None
        return started

    def _record_sweep(self) -> None:
        runs = (run_record(self.loaded, each) for each in self.resolved)
        self.ledger.write_sweep(sweep_record(self.loaded, self.resolved), runs)

    def _plan(self, runs: Sequence[ResolvedRun], seen: dict[str, Observation]) -> TimePlan:
        """Plan the time of these runs together, since they are one array."""
        given = self.loaded.sweep.resources.seconds_per_iteration
        estimate = estimate_iteration(given, [each.progress for each in seen.values()])
        return plan_time(self.site.cluster, estimate, max(each.iterations for each in runs))

    def _observe(self) -> dict[str, Observation]:
        seen, remark = observe(self.ledger, [each.id for each in self.resolved])
        if remark:  # whether a run is in the queue is not known, so nothing may be submitted
            raise ExperimentError(remark.splitlines()[0])
        return seen

    def _hand_over(
        self, runs: Sequence[ResolvedRun], code: Path, restart: bool, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        submission = self._claim(runs, code, restart)
        try:
            job = self.backend.submit(self.ledger, submission, self.site, plan=plan, slot=slot)
        except ExperimentError as error:
            self._note(submission, error=str(error).splitlines()[0])
            raise
        self._note(submission, job_id=job.job_id, process_start=job.process_start)
        return job

    def _claim(self, runs: Sequence[ResolvedRun], code: Path, restart: bool) -> Submission:
        token = secrets.token_hex(4)
        submission = Submission(
            token=token,
            sweep=self.loaded.name,
            cluster=self.site.name,
            executor=self.backend.name,
            job_name=f"yolof.{self.loaded.name}.{token}",
            host=socket.gethostname(),
            runs=[each.id for each in runs],
            code=str(code),
            cwd=os.getcwd(),
            created=now(),
        )
        self.ledger.write_submission(submission)
        if restart:
            for each in runs:
                discard_outputs(self.ledger.run_folder(each.id))
        self.ledger.claim(token, submission.runs)
        return submission

    def _note(self, submission: Submission, **changes: str | None) -> None:
        self.ledger.write_submission(submission.model_copy(update=changes))

    def _adopt_orphans(self) -> None:
        """Record the job ids of submits that were killed before they could."""
        own = (s for s in self.ledger.submissions() if s.executor == self.backend.name)
        orphans = [each for each in own if not each.job_id and not each.error]
        found = self.backend.find_jobs_of(orphans)
        for orphan in orphans:
            if job_id := found.get(orphan.token):
                logger.info("Found job %s of a submit that was cut off", job_id)
                self._note(orphan, job_id=job_id)
            else:
                self._note(orphan, error="its submit was cut off before its job was queued")

    def _wait(self, started: Sequence[ResolvedRun]) -> None:
        """Wait a moment, and log the progress of the runs now and then."""
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - self._said < _SAY_SECONDS:
            return
        self._said = time.monotonic()
        seen, _ = observe(self.ledger, [each.id for each in started])
        for each in started:
            progress = seen[each.id].progress
            if seen[each.id].state is State.RUNNING and progress.eta_seconds is not None:
                left = format_duration(progress.eta_seconds)
                done = f"iteration {progress.iteration} of {progress.max_iteration}"
                logger.info("%s  %s  %s, %s left", each.id, each.run.name, done, left)


def discard_outputs(folder: Path) -> None:
    """Move old outputs of a run to ``discarded-<time>/`` in its folder."""
    kept = folder / f"discarded-{now().replace(':', '')}"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != "run.json" and not path.name.startswith("discarded-"):
            kept.mkdir(exist_ok=True)
            shutil.move(str(path), str(kept / path.name))
