"""Query and cancel jobs with SLURM's own commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.errors import ExperimentError
from experiments.jobs.state import State

_WORDS = {
    State.QUEUED: "PENDING CONFIGURING EXPEDITING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD "
    "RESV_DEL_HOLD SPECIAL_EXIT",
    State.RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED UPDATE_DB",
    State.FINISHED: "COMPLETED",
    State.FAILED: "FAILED LAUNCH_FAILED RECONFIG_FAIL",
    State.CANCELLED: "CANCELLED REVOKED",
    State.TIMED_OUT: "TIMEOUT DEADLINE",
    State.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    State.NODE_FAILED: "NODE_FAIL BOOT_FAIL",
    State.PREEMPTED: "PREEMPTED",
}
STATES = {word: state for state, words in _WORDS.items() for word in words.split()}
"""Every job state of squeue(1) and sacct(1) -> the state of its run.

A held job counts as queued; its reason says why.
"""


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, as SLURM knows it."""

    state: State  # FINISHED if the job ended well
    word: str  # SLURM's own state
    reason: str  # why it waits or how it ended; may be empty
    nodes: str  # where it runs or ran
    name: str


_JOB = re.compile(r"(?P<base>\d+)(?:_(?:(?P<task>\d+)|\[(?P<tasks>[\d,-]+)(?:%\d+)?\]))?")


def require_slurm() -> None:
    """Raise an ExperimentError on a machine without SLURM's commands."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise ExperimentError(
            f"this machine has no SLURM (no {', '.join(missing)} on PATH). Run it on a login node, "
            "load its module, or use --cluster local"
        )


def find_jobs(
    job_ids: Iterable[str] = (), names: Iterable[str] = (), since: float | None = None
) -> dict[str, Job]:
    """Find jobs in SLURM's queue, and in its accounting if they have left the queue.

    Args:
        job_ids: base ids, without array tasks.
        since: how far back accounting looks for ``names``, in seconds of :func:`time.time`; by
            default a week.

    Returns:
        Job id, with ``_task`` for array tasks -> :class:`Job`. What SLURM has forgotten is absent.

    Raises:
        ExperimentError: there is no SLURM here, or its controller does not answer.
    """
    wanted_ids, wanted_names = set(job_ids), set(names)
    if not wanted_ids and not wanted_names:
        return {}
    require_slurm()
    found: dict[str, Job] = {}
    # The accounting first: what the queue says of the same job is newer.
    if shutil.which("sacct"):
        options = ["-nXP", "-o", "JobID,State,Reason,NodeList,ExitCode,JobName%200"]
        for select in _chunks("-j", wanted_ids):
            found.update(_read_sacct(_try("sacct", *options, *select)))
        # sacct reads local time. A minute more, since clocks differ.
        begin = time.localtime((time.time() - 7 * 86400 if since is None else since) - 60)
        options += ["-S", time.strftime("%Y-%m-%dT%H:%M:%S", begin)]
        for select in _chunks("--name", wanted_names):
            found.update(_read_sacct(_try("sacct", *options, *select)))
    queue = _run("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%j")
    for line in queue.splitlines():
        job_id, state, reason, nodes, name = [*line.split("|", 4), "", "", "", ""][:5]
        if job_id.split("_")[0] in wanted_ids or name in wanted_names:
            found[job_id] = _job(state, reason, nodes, name)
    return found


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs or array tasks, ended ones included; an ExperimentError if SLURM refuses."""
    require_slurm()
    for start in range(0, len(job_ids), 200):
        _run("scancel", *job_ids[start : start + 200])


def _chunks(option: str, values: set[str]) -> list[list[str]]:
    ordered = sorted(values)
    return [[option, ",".join(ordered[i : i + 200])] for i in range(0, len(ordered), 200)]


def _read_sacct(text: str) -> dict[str, Job]:
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) < 6:
            continue
        job_id, state, reason, nodes, exit_code, name = fields
        status, _, signal = exit_code.partition(":")
        ended = [f"signal {signal}"] if signal not in ("", "0") else []
        ended += [f"exit status {status}"] if status not in ("", "0") else []
        why = reason if reason not in ("", "None") else ", ".join(ended)
        for each in _expand(job_id):
            jobs[each] = _job(state, why, nodes, name)
    return jobs


def _expand(job_id: str) -> list[str]:
    """Split a waiting array such as ``7_[1-3,5%2]`` into its tasks."""
    match = _JOB.fullmatch(job_id)
    if match is None:
        return []
    base, tasks = match["base"], match["tasks"]
    if tasks is None:
        return [job_id]
    expanded = []
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        expanded += [f"{base}_{task}" for task in range(int(first), int(last or first) + 1)]
    return expanded


def _job(state: str, reason: str, nodes: str, name: str) -> Job:
    word = state.split()[0].rstrip("+") if state.split() else ""  # "CANCELLED by 1000"
    unset = ("", "None", "None assigned", "(null)")
    reason, nodes = ("" if text in unset else text for text in (reason, nodes))
    # An unknown word of a newer SLURM counts as running, so that nothing is submitted twice.
    return Job(STATES.get(word, State.RUNNING), state, reason, nodes, name)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExperimentError(f"{command[0]} did not answer: {error}") from error
    if done.returncode:
        raise ExperimentError(
            f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}. Nothing was "
            "changed; try again when SLURM answers"
        )
    return done.stdout


def _try(*command: str) -> str:
    """Return the output of the accounting; empty where a cluster has none."""
    try:
        return _run(*command)
    except ExperimentError:
        return ""
