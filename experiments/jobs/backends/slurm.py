"""Run sweeps as job arrays of a SLURM cluster, through submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.jobs.estimate import TimePlan
from experiments.jobs.state import Observation, State
from experiments.store.ledger import Ledger
from experiments.store.record_files import seconds
from experiments.store.records import Submission

from .base import Backend, ClaimedRun, Site, StartedJob, Watch, job_environment
from .slurm_commands import Job, cancel_jobs, find_jobs, require_slurm


class SlurmBackend(Backend):
    """Hands arrays to ``sbatch``; observes with ``squeue`` and ``sacct``."""

    name = "slurm"
    queues = True

    def check(self, site: Site) -> None:
        require_slurm()
        super().check(site)

    def submit(
        self, ledger: Ledger, submission: Submission, site: Site, *, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = site.cluster.signal  # read when it is imported
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from experiments.jobs.train_job import TrainJob

        folder = ledger.submission_folder(submission.token) / "jobs"
        parameters = _sbatch_parameters(submission, site, plan)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):  # submitit prints what sbatch said
                executor = SlurmExecutor(folder, max_num_timeout=plan.time_outs)
                executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
                with executor.batch():
                    jobs = [
                        executor.submit(TrainJob(str(ledger.root), identity, submission.token))
                        for identity in submission.runs
                    ]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise ExperimentError(_explain_refusal(str(error), submission)) from error
        return StartedJob(jobs[0].job_id.split("_")[0])

    def watch(self, submissions: Sequence[Submission]) -> Watch:
        return _SlurmWatch(submissions)

    def cancel(self, ledger: Ledger, submission: Submission, job_ids: Sequence[str]) -> None:
        cancel_jobs(job_ids)

    def find_jobs_of(self, submissions: Sequence[Submission]) -> dict[str, str]:
        if not submissions:
            return {}
        since = min(seconds(each.created) for each in submissions)
        return _ids_by_token(submissions, find_jobs((), [s.job_name for s in submissions], since))


def _ids_by_token(submissions: Sequence[Submission], jobs: dict[str, Job]) -> dict[str, str]:
    tokens = {submission.job_name: submission.token for submission in submissions}
    return {
        tokens[job.name]: job_id.split("_")[0] for job_id, job in jobs.items() if job.name in tokens
    }


class _SlurmWatch(Watch):
    def __init__(self, submissions: Sequence[Submission]):
        ids = [each.job_id for each in submissions if each.job_id]
        # Without an id: its submit was killed, before or after SLURM had taken it.
        orphans = [each for each in submissions if not each.job_id and not each.error]
        since = min((seconds(each.created) for each in orphans), default=None)
        self._jobs: dict[str, Job] = {}
        try:
            self._jobs = find_jobs(ids, [each.job_name for each in orphans], since)
        except ExperimentError as error:
            self.remark = f"{error}\nWhat is shown is what the runs themselves last wrote."
        self._found = _ids_by_token(orphans, self._jobs)

    def observe(self, run: ClaimedRun) -> Observation:
        submission = run.submission
        if found := self._found.get(submission.token):
            submission = submission.model_copy(update={"job_id": found})
        if not submission.job_id:
            if self.remark:
                return Observation(State.QUEUED, "submitted? SLURM was not asked", executor="slurm")
            return Observation(State.MISSING, "being submitted, or cut off", progress=run.progress)
        current = run.current
        job_id = submission.task_id(run.claim.index)
        job = self._jobs.get(job_id)
        nodes = (job.nodes if job else "") or current.node

        def seen(state: State, reason: str = "") -> Observation:
            return Observation(state, reason, job_id, nodes, "slurm", run.progress)

        if job is None:
            if self.remark:
                running = current.state in ("starting", "running")
                return seen(State.RUNNING if running else State.QUEUED, "SLURM was not asked")
            if run.has_failed:
                return seen(run.failure_state, current.reason)
            return seen(State.LOST, "SLURM no longer knows its job, which left no end")
        if job.state is State.QUEUED:
            return seen(State.QUEUED, job.reason)
        if job.state is State.RUNNING:
            return seen(State.RUNNING, run.doing)
        why = current.reason or ": ".join(filter(None, [job.reason, run.last_words()]))
        if job.state is State.FINISHED:  # its job ended well, and the run says otherwise
            return seen(State.FAILED, why or "ended before it was done")
        state: State = job.state
        if state is State.FAILED and run.has_failed:
            state = run.failure_state
        elif state is State.FAILED and current.state == "stopped":
            state = State.INTERRUPTED  # by SIGTERM alone: it saved, and ended before SLURM did
        return seen(state, why)


def _sbatch_parameters(submission: Submission, site: Site, plan: TimePlan) -> dict[str, Any]:
    """Return parameters of ``submitit.SlurmExecutor``; None stands for SLURM's own default."""
    cluster, code = site.cluster, Path(submission.code)
    threads = cluster.threads_per_rank or cluster.cpus_per_rank
    # In the copy of the code: Python looks in the current folder before PYTHONPATH.
    setup = [f"cd {shlex.quote(str(code))} || exit 1"]
    setup += [
        f"export {name}={shlex.quote(value)}"
        for name, value in job_environment(cluster, code, threads).items()
    ]
    ranks_per_node = site.ranks // site.nodes
    memory = cluster.memory_gb_per_node
    return {
        "job_name": submission.job_name,
        "time": plan.minutes,
        "nodes": site.nodes,
        "ntasks_per_node": ranks_per_node,
        "gpus_per_node": ranks_per_node if cluster.gpus_per_node else None,
        "cpus_per_task": cluster.cpus_per_rank,
        "mem": f"{round(memory * 1024)}M" if memory else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal_delay_s": cluster.notice_seconds,
        "array_parallelism": cluster.max_parallel,
        "setup": [*cluster.setup, *setup],
        # One rank that fails ends the others, which would wait for it.
        "srun_args": ["--kill-on-bad-exit=1", "--export=ALL", *cluster.srun_options],
        "additional_parameters": {
            "requeue": True,
            **({"export": cluster.export} if cluster.export else {}),
            **cluster.options,
        },
    }


_ADVICE = {
    "invalid partition": "name one that 'sinfo' lists under 'partition'",
    "invalid account": "name one that 'sacctmgr show assoc user=$USER' lists under 'account'",
    "invalid qos": "name one that 'sacctmgr show assoc user=$USER' lists under 'qos'",
    "limit": "wait until runs have ended, or submit fewer at a time with --limit",
    "requested node configuration": "ask for what one node has (ranks_per_node, gpus_per_node, "
    "cpus_per_rank, memory_gb_per_node)",
    "time limit": "lower time_limit_minutes to what the partition allows",
    "no space": "free some disk space",
    "configuration source": "SLURM is installed here but not set up; see SLURM_CONF",
    "unable to contact": "wait until SLURM's controller answers",
}


def _explain_refusal(said: str, submission: Submission) -> str:
    line = " ".join(said.split())
    found = next((text for word, text in _ADVICE.items() if word in line.lower()), "")
    found = found or "correct the cluster's file"
    return (
        f"SLURM did not take {len(submission.runs)} run(s) of {submission.sweep}: {line}. Cluster "
        f"{submission.cluster!r}: {found}; then submit again. None of them is queued"
    )
