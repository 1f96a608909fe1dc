"""Run sweeps in processes of this machine, through submitit's local executor."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.jobs.estimate import TimePlan
from experiments.store.ledger import Ledger
from experiments.store.records import Submission

from .base import Site, StartedJob, job_environment, surroundings
from .processes import ProcessBackend, process_start


class LocalBackend(ProcessBackend):
    """One process group per run, each with its share of the GPUs or cores."""

    name = "local"

    def check(self, site: Site) -> None:
        if site.nodes > 1:
            raise ExperimentError(
                f"cluster {site.name!r} is one machine of {site.cluster.ranks_per_node} ranks; "
                f"sweep {site.sweep!r} asks for {site.ranks}. Raise ranks_per_node in its file, or "
                "use SLURM"
            )
        super().check(site)

    def parallel(self, site: Site) -> int:
        if not site.cluster.gpus_per_node:
            return site.cluster.max_parallel
        return max(1, min(site.cluster.max_parallel, site.cluster.gpus_per_node // site.ranks))

    def submit(
        self, ledger: Ledger, submission: Submission, site: Site, *, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        from submitit import LocalExecutor

        from experiments.jobs.train_job import TrainJob

        cluster, ranks, code = site.cluster, site.ranks, Path(submission.code)
        gpus = range(slot * ranks, (slot + 1) * ranks) if cluster.gpus_per_node else ()
        executor = LocalExecutor(ledger.submission_folder(submission.token) / "jobs")
        executor.update_parameters(
            tasks_per_node=ranks,
            gpus_per_node=len(gpus),
            visible_gpus=tuple(gpus),
            timeout_min=cluster.time_limit_minutes,
            signal_delay_s=cluster.notice_seconds,
        )
        # Processes that share the cores are several times faster than ones that fight for them.
        share = max(1, (os.cpu_count() or 1) // (ranks * cluster.max_parallel))
        environment = job_environment(cluster, code, cluster.threads_per_rank or share)
        (identity,) = submission.runs
        try:
            with surroundings(environment, code):
                job = executor.submit(TrainJob(str(ledger.root), identity, submission.token))
        except OSError as error:
            raise ExperimentError(
                f"cannot start a process for run {identity}: {error}. It is not submitted"
            ) from error
        return StartedJob(job.job_id, process_start(job.job_id), job.done)
