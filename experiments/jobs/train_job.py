"""The callable that is submitted: it holds a run and a token, and no state that could age."""

from __future__ import annotations

from submitit.helpers import Checkpointable, DelayedSubmission


class TrainJob(Checkpointable):
    """Trains one run, on each rank of its job.

    It is pickled when submitted and at each requeue. Config, claim and last checkpoint are read
    from the run folder.
    """

    def __init__(self, root: str, identity: str, token: str):
        """See :func:`experiments.jobs.rank.run_rank`."""
        self.root, self.identity, self.token = root, identity, token

    def __call__(self) -> str:
        from .rank import run_rank  # imports torch

        return run_rank(self.root, self.identity, self.token)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit requeues; called after the run has saved."""
        return DelayedSubmission(self)
