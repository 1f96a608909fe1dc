"""Cancel runs: always asked for by the user, never a consequence of something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from experiments.store.ledger import Ledger

from .backends import BACKENDS
from .observe import observe
from .state import ACTIVE


def cancel_runs(ledger: Ledger, identities: Sequence[str]) -> list[str]:
    """Cancel the jobs of runs that have one; checkpoints stay, and ``retry`` goes on from them.

    Returns:
        The runs whose jobs were told to end.

    Raises:
        ExperimentError: the cluster refuses, or does not answer.
    """
    with ledger.lock():
        seen, _ = observe(ledger, identities)
        active = [each for each in identities if seen[each].state in ACTIVE and seen[each].job_id]
        jobs: dict[str, list[str]] = defaultdict(list)
        for identity in active:
            claim = ledger.read_claim(identity)
            if claim is not None:
                jobs[claim.token].append(str(seen[identity].job_id))
        for token, job_ids in jobs.items():
            submission = ledger.read_submission(token)
            if submission is not None:
                BACKENDS[submission.executor].cancel(ledger, submission, job_ids)
    return active
