"""What is submitted: a run folder and a token, and no state that could grow stale."""

from __future__ import annotations

from submitit.helpers import Checkpointable, DelayedSubmission


class TrainJob(Checkpointable):
    """Trains one run, on each rank of its job.

    It is pickled when submitted and again at each requeue. Everything else it finds in the run
    folder: the config, who may train it, and the last checkpoint.
    """

    def __init__(self, root: str, identity: str, token: str):
        """
        Args:
            root: folder of the ledger.
            identity: the run.
            token: the submission that this job belongs to.
        """
        self.root = root
        self.identity = identity
        self.token = token

    def __call__(self) -> str:
        from .rank import run_rank  # imports torch

        return run_rank(self.root, self.identity, self.token)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit requeues; called after the run has saved."""
        return DelayedSubmission(self)
