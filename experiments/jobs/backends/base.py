"""The contract of a backend: a way of running the jobs of a sweep."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments.errors import ExperimentError
from experiments.jobs.estimate import TimePlan
from experiments.jobs.logs import job_files, last_error_line
from experiments.jobs.state import Observation, State
from experiments.spec.cluster import Cluster
from experiments.store.ledger import Ledger
from experiments.store.records import Claim, Progress, Submission
from experiments.store.snapshot import python_path


@dataclass(frozen=True)
class Site:
    """A cluster as one sweep uses it."""

    name: str  # of the cluster
    cluster: Cluster
    sweep: str  # its name
    ranks: int  # processes of each run

    @property
    def nodes(self) -> int:
        """Nodes of each run."""
        return max(1, -(-self.ranks // self.cluster.ranks_per_node))


@dataclass(frozen=True)
class StartedJob:
    """A job that a backend took."""

    job_id: str  # of the cluster, or of the process
    process_start: str | None = None  # of a process, see Submission
    is_done: Callable[[], bool] = lambda: False  # for backends whose jobs are waited for


@dataclass(frozen=True)
class ClaimedRun:
    """The records of a run that was submitted and is not finished."""

    ledger: Ledger
    claim: Claim
    submission: Submission
    progress: Progress  # written by the job of any submission; empty before that
    current: Progress  # of this submission's job alone, with the first failure of its ranks

    @property
    def has_failed(self) -> bool:
        """Whether its job recorded a failure."""
        return self.current.state == "failed"

    @property
    def failure_state(self) -> State:
        """The kind of that failure."""
        kinds = {"out of memory": State.OUT_OF_MEMORY, "timed out": State.TIMED_OUT}
        return kinds.get(self.current.kind, State.FAILED)

    @property
    def doing(self) -> str:
        """What a job does before it trains; empty if it trains."""
        state = self.current.state or "starting"
        return "" if state == "running" else self.current.reason or state

    def last_words(self) -> str:
        """The last error that its job printed."""
        return last_error_line(job_files(self.ledger, self.claim, self.submission))


class Watch(ABC):
    """Observes runs of one backend, which was asked for their jobs once."""

    remark: str = ""  # for the user, if the backend could not be asked

    @abstractmethod
    def observe(self, run: ClaimedRun) -> Observation:
        """Return the state of a run, from its records and its job."""


class Backend(ABC):
    """A way of running jobs.

    Attributes:
        name: ``executor`` of a cluster file, and of the submissions that were made with it.
        queues: whether it takes many runs at once and keeps them until there is room. Otherwise
            runs are started one by one, :meth:`parallel` at a time, and waited for.
    """

    name: ClassVar[str]
    queues: ClassVar[bool] = False

    def check(self, site: Site) -> None:
        """Raise an ExperimentError if the ranks do not fit, or commands are missing."""
        if site.ranks % site.nodes:
            raise ExperimentError(
                f"{site.ranks} ranks cannot be shared evenly by {site.nodes} nodes of "
                f"{site.cluster.ranks_per_node}; Detectron2 wants the same number on each"
            )

    def parallel(self, site: Site) -> int:
        """Return how many runs are started at a time; not used by backends that queue."""
        return site.cluster.max_parallel

    @abstractmethod
    def submit(
        self, ledger: Ledger, submission: Submission, site: Site, *, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        """Start or queue the runs of a submission, which are claimed for it.

        ``slot`` is which of the :meth:`parallel` places the run takes.

        Raises:
            ExperimentError: it was refused; nothing runs.
        """

    @abstractmethod
    def watch(self, submissions: Sequence[Submission]) -> Watch:
        """Query the jobs of these submissions, all at once."""

    @abstractmethod
    def cancel(self, ledger: Ledger, submission: Submission, job_ids: Sequence[str]) -> None:
        """Tell jobs of a submission to end; an ExperimentError if the cluster refuses."""

    def find_jobs_of(self, submissions: Sequence[Submission]) -> dict[str, str]:
        """Return token -> job id of submissions whose submit was killed before it noted the id.

        Raises:
            ExperimentError: the cluster does not answer.
        """
        return {}


def job_environment(cluster: Cluster, code: Path, threads: int | None) -> dict[str, str]:
    """Return the environment of a job: the snapshot comes first on Python's path."""
    environment = {"PYTHONPATH": python_path(code), "SUBMITIT_PREEMPT_SIGNAL": cluster.signal}
    return {**environment, "OMP_NUM_THREADS": str(threads)} if threads else environment


@contextlib.contextmanager
def surroundings(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Set the environment and the current folder that a child process is to inherit."""
    before, here = dict(os.environ), os.getcwd()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
