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
    """A cluster as one sweep uses it.

    Attributes:
        name: of the cluster.
        cluster: its file.
        sweep: name of the sweep.
        ranks: processes of each run.
    """

    name: str
    cluster: Cluster
    sweep: str
    ranks: int

    @property
    def nodes(self) -> int:
        """Nodes of each run."""
        return max(1, -(-self.ranks // self.cluster.ranks_per_node))


@dataclass(frozen=True)
class StartedJob:
    """A job that was handed over.

    Attributes:
        job_id: of the cluster; of a process its id.
        process_start: of a process, see ``Submission``.
        is_done: whether it has ended, for backends whose jobs are waited for.
    """

    job_id: str
    process_start: str | None = None
    is_done: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class ClaimedRun:
    """What the records say of a run that was submitted and is not finished.

    Attributes:
        ledger: of the runs.
        claim, submission: who may train it.
        progress: how far it came, whichever submission's job said so; empty before any did.
        current: the same of this submission's job alone, with the first failure of its ranks.
    """

    ledger: Ledger
    claim: Claim
    submission: Submission
    progress: Progress
    current: Progress

    @property
    def has_failed(self) -> bool:
        """Whether its job left word of a failure."""
        return self.current.state == "failed"

    @property
    def failure_state(self) -> State:
        """The kind of that failure."""
        kinds = {"out of memory": State.OUT_OF_MEMORY, "timed out": State.TIMED_OUT}
        return kinds.get(self.current.kind, State.FAILED)

    @property
    def doing(self) -> str:
        """What a job does that is not training yet; empty if it trains."""
        state = self.current.state or "starting"
        return "" if state == "running" else self.current.reason or state

    def last_words(self) -> str:
        """The last error that its job printed."""
        return last_error_line(job_files(self.ledger, self.claim, self.submission))


class Watch(ABC):
    """Observes runs of one backend, which was asked for their jobs once.

    Attributes:
        remark: for the user, if the backend could not be asked; else empty.
    """

    remark: str = ""

    @abstractmethod
    def observe(self, run: ClaimedRun) -> Observation:
        """Say how a run is, from its records and its job."""


class Backend(ABC):
    """A way of running jobs.

    Attributes:
        name: ``executor`` of a cluster file, and of the submissions that were made with it.
        queues: whether it takes many runs at once and keeps them until there is room. Without, runs
            are started one by one, as many at a time as :meth:`parallel` says, and waited for.
    """

    name: ClassVar[str]
    queues: ClassVar[bool] = False

    def check(self, site: Site) -> None:
        """Check that the runs of a sweep can run here.

        Raises:
            ExperimentError: the ranks do not fit, or the backend's commands are missing.
        """
        if site.ranks % site.nodes:
            raise ExperimentError(
                f"{site.ranks} ranks cannot be shared evenly by {site.nodes} nodes of "
                f"{site.cluster.ranks_per_node}; Detectron2 wants the same number on each"
            )

    def parallel(self, site: Site) -> int:
        """How many runs are started at a time; not asked of a backend that queues."""
        return site.cluster.max_parallel

    @abstractmethod
    def submit(
        self, ledger: Ledger, submission: Submission, site: Site, *, plan: TimePlan, slot: int = 0
    ) -> StartedJob:
        """Hand the runs of a submission over.

        Args:
            ledger: has the runs, which are claimed for the submission.
            submission: one run, or many if the backend queues.
            site: where and with how many ranks.
            plan: time limit and number of requeues.
            slot: which of the :meth:`parallel` places the run takes.

        Raises:
            ExperimentError: it was refused; nothing runs.
        """

    @abstractmethod
    def watch(self, submissions: Sequence[Submission]) -> Watch:
        """Ask for the jobs of these submissions, once for all."""

    @abstractmethod
    def cancel(self, ledger: Ledger, submission: Submission, job_ids: Sequence[str]) -> None:
        """Tell jobs of a submission to end.

        Raises:
            ExperimentError: the cluster refuses, or does not answer.
        """

    def find_jobs_of(self, submissions: Sequence[Submission]) -> dict[str, str]:
        """Find jobs of submissions whose submit was killed before it could note their ids.

        Returns:
            Token -> job id, of those that the cluster has.

        Raises:
            ExperimentError: the cluster does not answer.
        """
        return {}


def job_environment(cluster: Cluster, code: Path, threads: int | None) -> dict[str, str]:
    """Return the environment of a job: the snapshot comes first on Python's path."""
    environment = {
        "PYTHONPATH": python_path(code),
        "SUBMITIT_PREEMPT_SIGNAL": cluster.signal,
    }
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
