"""Run sweeps in this process, one run after the other, for a debugger."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.jobs.estimate import TimePlan
from experiments.store.ledger import Ledger
from experiments.store.record_files import write_record
from experiments.store.records import Failure, Submission

from .base import Site, StartedJob, surroundings
from .processes import ProcessBackend, process_start

logger = logging.getLogger(__name__)


class DebugBackend(ProcessBackend):
    """One rank, in this process."""

    name = "debug"
    outlives_failure = True

    def check(self, site: Site) -> None:
        if site.ranks > 1:
            raise ExperimentError(
                f"cluster {site.name!r} runs in this process, on one rank; sweep {site.sweep!r} "
                f"asks for {site.ranks} (resources.ranks). Use --cluster local"
            )

    def parallel(self, site: Site) -> int:
        return 1

    def submit(
        self, ledger: Ledger, submission: Submission, site: Site, *, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        # Trains when it is first waited for: only then is the submission on disk, and the ledger
        # unlocked.
        pid = str(os.getpid())
        train = functools.partial(_train, ledger, submission)
        return StartedJob(pid, process_start(pid), functools.cache(train))


def _train(ledger: Ledger, submission: Submission) -> bool:
    from submitit import DebugExecutor

    from experiments.jobs.train_job import TrainJob

    (identity,) = submission.runs
    folder = ledger.submission_folder(submission.token) / "jobs"
    job = DebugExecutor(folder).submit(TrainJob(str(ledger.root), identity, submission.token))
    variables = {"SUBMITIT_DEBUG_JOB_ID": job.job_id, "SUBMITIT_FOLDER": str(folder)}
    with surroundings(variables, Path.cwd()):
        # Not job.results(), which opens a debugger on an error, also where nobody can type.
        error = job.exception()
    if error is not None:
        logger.error("%s failed: %s", identity, error)
        write_record(folder / "failure.json", Failure(reason=repr(error)))
    return True
