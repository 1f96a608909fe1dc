"""Submitting runs: claim what is wanted, ask the cluster once, note what it answered.

The order makes it safe to be killed anywhere. A submission is written down before anything is asked
of the cluster, under a token that is also in the job's name; then its runs are claimed for it; then
comes ``sbatch``; then the job id is noted. Where that last note is missing, the next command finds
the job by its name. And a job trains a run only while the run is claimed for its token, so that a
job nobody knows of does nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.spec.cluster import Cluster
from experiments.spec.resolve import ResolvedRun
from experiments.spec.sweep import LoadedSweep
from experiments.store.files import now, seconds, write_json
from experiments.store.ledger import Ledger
from experiments.store.snapshot import take_snapshot

from .backends.slurm_commands import find_jobs, require_slurm
from .estimate import TimePlan, estimate_iteration, format_duration, plan_time
from .observe import Observation, State, observe, process_start

logger = logging.getLogger(__name__)

Wanted = Callable[[ResolvedRun, Observation], bool]

_POLL_SECONDS = 0.5
_SAY_SECONDS = 20.0


class Launcher:
    """Submits runs of one sweep to one cluster."""

    def __init__(
        self,
        ledger: Ledger,
        loaded: LoadedSweep,
        resolved: Sequence[ResolvedRun],
        cluster_name: str,
        cluster: Cluster,
    ):
        """
        Raises:
            ExperimentError: the cluster cannot run this sweep, or is not here.
        """
        self.ledger = ledger
        self.loaded = loaded
        self.resolved = list(resolved)
        self.cluster_name = cluster_name
        self.cluster = cluster
        self.ranks = loaded.sweep.resources.ranks
        self._said = time.monotonic()
        if cluster.executor == "slurm":
            require_slurm()
        self.nodes = max(1, -(-self.ranks // cluster.ranks_per_node))
        if cluster.executor == "debug" and self.ranks > 1:
            raise ExperimentError(
                f"cluster {cluster_name!r} runs in this process, on one rank; sweep "
                f"{loaded.name!r} asks for {self.ranks} (resources.ranks). Use --cluster local"
            )
        if cluster.executor == "local" and self.nodes > 1:
            raise ExperimentError(
                f"cluster {cluster_name!r} is one machine of {cluster.ranks_per_node} ranks; sweep "
                f"{loaded.name!r} asks for {self.ranks}. Raise ranks_per_node in its file, or use "
                "SLURM"
            )
        if self.ranks % self.nodes:
            raise ExperimentError(
                f"{self.ranks} ranks cannot be shared evenly by {self.nodes} nodes of "
                f"{cluster.ranks_per_node}; Detectron2 wants the same number on each"
            )

    def submit(self, wanted: Wanted, *, restart: bool = False) -> list[ResolvedRun]:
        """Submit the runs that are wanted now; returns them.

        Args:
            wanted: given a run and its observation, whether to submit it. Asked under the lock.
            restart: put away what the run has trained, and begin anew.

        Raises:
            ExperimentError: nothing was submitted, or not all; the message says why.
        """
        if self.cluster.executor == "slurm":
            return self._submit_to_slurm(wanted, restart)
        return self._run_here(wanted, restart)

    def time_plan(self, runs: Sequence[ResolvedRun], seen: dict[str, Observation]) -> TimePlan:
        """Time limit and time-outs for these runs together, as they are one array."""
        estimate = estimate_iteration(
            self.loaded.sweep.resources.seconds_per_iteration,
            [observation.progress for observation in seen.values()],
        )
        return plan_time(self.cluster, estimate, max(each.iterations for each in runs))

    def _observe(self) -> dict[str, Observation]:
        seen, remark = observe(self.ledger, [each.id for each in self.resolved])
        if remark:  # whether a run is in the queue is not known, so nothing may be submitted
            raise ExperimentError(remark.splitlines()[0])
        return seen

    def _submit_to_slurm(self, wanted: Wanted, restart: bool) -> list[ResolvedRun]:
        with self.ledger.lock():
            self._adopt_orphans()
            self.ledger.write_sweep(self.loaded, self.resolved)
            seen = self._observe()
            chosen = [each for each in self.resolved if wanted(each, seen[each.id])]
            if not chosen:
                return []
            plan = self.time_plan(chosen, seen)
            logger.info("%s", plan.sentence[0].upper() + plan.sentence[1:])
            code = take_snapshot(self.ledger.code)
            size = self.cluster.max_array_size
            for start in range(0, len(chosen), size):
                self._submit_array(chosen[start : start + size], plan, code, restart)
            return chosen

    def _submit_array(
        self, runs: list[ResolvedRun], plan: TimePlan, code: Path, restart: bool
    ) -> None:
        record = self._claim(runs, code, restart)
        try:
            job_id = _sbatch(self.ledger, record, self.cluster, self.nodes, self.ranks, plan)
        except ExperimentError as error:
            self.ledger.write_submission({**record, "error": str(error).splitlines()[0]})
            raise
        self.ledger.write_submission({**record, "job_id": job_id})
        logger.info("Job %s: %d run%s", job_id, len(runs), "s" if len(runs) > 1 else "")

    def _claim(self, runs: list[ResolvedRun], code: Path, restart: bool) -> dict[str, Any]:
        token = self.ledger.new_token()
        record = {
            "token": token,
            "sweep": self.loaded.name,
            "cluster": self.cluster_name,
            "executor": self.cluster.executor,
            "job_name": f"yolof.{self.loaded.name}.{token}",
            "job_id": None,
            "host": socket.gethostname(),
            "runs": [each.id for each in runs],
            "code": str(code),
            "cwd": os.getcwd(),
            "created": now(),
        }
        self.ledger.write_submission(record)
        if restart:
            for each in runs:
                _put_away(self.ledger.run_folder(each.id))
        self.ledger.claim(token, [each.id for each in runs])
        return record

    def _adopt_orphans(self) -> None:
        """Note the job ids of submits that were killed before they could."""
        orphans = [
            record
            for record in self.ledger.submissions()
            if record["executor"] == "slurm" and not record["job_id"] and not record.get("error")
        ]
        if not orphans:
            return
        since = min(seconds(record["created"]) for record in orphans)
        jobs = find_jobs(names=[record["job_name"] for record in orphans], since=since)
        for record in orphans:
            found = [job_id for job_id, job in jobs.items() if job.name == record["job_name"]]
            if found:
                record["job_id"] = found[0].split("_")[0]
                logger.info("Found job %s of a submit that was cut off", record["job_id"])
            else:
                record["error"] = "its submit was cut off before SLURM took it"
            self.ledger.write_submission(record)

    def _run_here(self, wanted: Wanted, restart: bool) -> list[ResolvedRun]:
        """Run on this machine, a number at a time; other commands may share the work."""
        with self.ledger.lock():
            self.ledger.write_sweep(self.loaded, self.resolved)
        code = take_snapshot(self.ledger.code)
        slots: dict[int, Any] = dict.fromkeys(range(self._parallel()))
        started: list[ResolvedRun] = []
        try:
            for each in self.resolved:
                while (slot := _free_slot(slots)) is None:
                    self._wait(started)
                job = self._start_here(each, wanted, restart, code, slot)
                if job is not None:
                    slots[slot] = job
                    started.append(each)
            while any(job is not None and not job.done() for job in slots.values()):
                self._wait(started)
        except KeyboardInterrupt:
            raise ExperimentError(
                "interrupted: what runs was told to stop, what waited was not started. "
                "'submit' starts the rest, 'retry' goes on with the interrupted ones"
            ) from None
        return started

    def _wait(self, started: Sequence[ResolvedRun]) -> None:
        """Pass some time, and say now and then how far the runs are."""
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - self._said < _SAY_SECONDS:
            return
        self._said = time.monotonic()
        seen, _ = observe(self.ledger, [each.id for each in started])
        for each in started:
            progress = seen[each.id].progress
            if seen[each.id].state is State.RUNNING and "eta_seconds" in progress:
                logger.info(
                    "%s  %s  iteration %d of %d, %s left",
                    each.id,
                    each.run.name,
                    progress["iteration"],
                    progress["max_iteration"],
                    format_duration(progress["eta_seconds"]),
                )

    def _start_here(
        self, run: ResolvedRun, wanted: Wanted, restart: bool, code: Path, slot: int
    ) -> Any:
        with self.ledger.lock():
            if not wanted(run, self._observe()[run.id]):
                return None
            record = self._claim([run], code, restart)
            if self.cluster.executor == "debug":
                record |= {
                    "job_id": str(os.getpid()),
                    "process_start": process_start(str(os.getpid())),
                }
                self.ledger.write_submission(record)
                job = None
            else:
                job = _start_process(self.ledger, record, self.cluster, self.ranks, slot)
                record |= {"job_id": job.job_id, "process_start": process_start(job.job_id)}
                self.ledger.write_submission(record)
        logger.info("%s  %s", run.id, run.run.name)
        if job is None:
            job = _run_in_this_process(self.ledger, record, run.id)
        return job

    def _parallel(self) -> int:
        cluster = self.cluster
        if cluster.executor == "debug":
            return 1
        if not cluster.gpus_per_node:
            return cluster.max_parallel
        return max(1, min(cluster.max_parallel, cluster.gpus_per_node // self.ranks))


def _free_slot(slots: dict[int, Any]) -> int | None:
    return next((slot for slot, job in slots.items() if job is None or job.done()), None)


def _put_away(folder: Path) -> None:
    """Keep what a run has trained beside the new start, which begins with nothing."""
    kept = folder / f"discarded-{now().replace(':', '')}"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != "run.json" and not path.name.startswith("discarded-"):
            kept.mkdir(exist_ok=True)
            shutil.move(str(path), str(kept / path.name))


def _environment(cluster: Cluster, code: Path, threads: int | None) -> dict[str, str]:
    """What the job's processes must have set."""
    before = os.environ.get("PYTHONPATH")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(code), *([before] if before else [])]),
        "SUBMITIT_PREEMPT_SIGNAL": cluster.signal,
    }
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def _sbatch(
    ledger: Ledger, record: dict[str, Any], cluster: Cluster, nodes: int, ranks: int, plan: TimePlan
) -> str:
    import shlex

    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = cluster.signal  # submitit reads it when imported
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from .train_job import TrainJob

    code = Path(record["code"])
    threads = cluster.threads_per_rank or cluster.cpus_per_rank
    # In the copy of the code: Python looks in the current folder before PYTHONPATH.
    setup = [f"cd {shlex.quote(str(code))} || exit 1"]
    setup += [f"export {name}={shlex.quote(value)}"
              for name, value in _environment(cluster, code, threads).items()]  # fmt: skip
    ranks_per_node = ranks // nodes
    parameters = {
        "job_name": record["job_name"],
        "time": plan.minutes,
        "nodes": nodes,
        "ntasks_per_node": ranks_per_node,
        "gpus_per_node": ranks_per_node if cluster.gpus_per_node else None,
        "cpus_per_task": cluster.cpus_per_rank,
        "mem": f"{round(cluster.memory_gb_per_node * 1024)}M"
        if cluster.memory_gb_per_node
        else None,
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
    folder = ledger.submission_folder(record["token"]) / "jobs"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # submitit prints what sbatch said
            executor = SlurmExecutor(folder, max_num_timeout=plan.time_outs)
            executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
            with executor.batch():
                jobs = [executor.submit(TrainJob(str(ledger.root), identity, record["token"]))
                        for identity in record["runs"]]  # fmt: skip
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise ExperimentError(_explain_refusal(str(error), record)) from error
    return jobs[0].job_id.split("_")[0]


def _explain_refusal(said: str, record: dict[str, Any]) -> str:
    advice = {
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
    line = " ".join(said.split())
    found = next((text for word, text in advice.items() if word in line.lower()), "")
    found = found or "mend the cluster's file"
    return (
        f"SLURM did not take {len(record['runs'])} run(s) of {record['sweep']}: {line}. Cluster "
        f"{record['cluster']!r}: {found}; then submit again. None of them is queued"
    )


def _start_process(
    ledger: Ledger, record: dict[str, Any], cluster: Cluster, ranks: int, slot: int
) -> Any:
    from submitit import LocalExecutor

    from .train_job import TrainJob

    code = Path(record["code"])
    gpus = range(slot * ranks, (slot + 1) * ranks) if cluster.gpus_per_node else ()
    folder = ledger.submission_folder(record["token"]) / "jobs"
    executor = LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=ranks,
        gpus_per_node=len(gpus),
        visible_gpus=tuple(gpus),
        timeout_min=cluster.time_limit_minutes,
        signal_delay_s=cluster.notice_seconds,
    )
    # Processes that share the cores in peace are several times faster than ones that fight for
    # them.
    share = max(1, (os.cpu_count() or 1) // (ranks * cluster.max_parallel))
    threads = cluster.threads_per_rank or share
    try:
        with _surroundings(_environment(cluster, code, threads), code):
            return executor.submit(TrainJob(str(ledger.root), record["runs"][0], record["token"]))
    except OSError as error:
        raise ExperimentError(
            f"cannot start a process for run {record['runs'][0]}: {error}. It is not submitted"
        ) from error


@contextlib.contextmanager
def _surroundings(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """The environment and the current folder that a child process is to inherit."""
    before, here = dict(os.environ), os.getcwd()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


class _Done:
    """What ran in this process is done when it returns."""

    def done(self) -> bool:
        return True


def _run_in_this_process(ledger: Ledger, record: dict[str, Any], identity: str) -> _Done:
    from submitit import DebugExecutor

    from .train_job import TrainJob

    folder = ledger.submission_folder(record["token"]) / "jobs"
    job = DebugExecutor(folder).submit(TrainJob(str(ledger.root), identity, record["token"]))
    variables = {"SUBMITIT_DEBUG_JOB_ID": job.job_id, "SUBMITIT_FOLDER": str(folder)}
    with _surroundings(variables, Path.cwd()):
        # Not job.results(), which opens a debugger on an error, also where nobody can type.
        error = job.exception()
    if error is not None:
        logger.error("%s failed: %s", identity, error)
        write_json(folder / "failure.json", {"error": repr(error)})
    return _Done()
