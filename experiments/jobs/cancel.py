"""Cancelling runs: always asked for by the user, never a consequence of something else."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from experiments.store.ledger import Ledger

from .backends.slurm_commands import cancel_jobs
from .observe import ACTIVE, observe


def cancel_runs(ledger: Ledger, identities: Sequence[str]) -> list[str]:
    """Cancel the jobs of runs that have one; checkpoints stay, and ``retry`` goes on from them.

    Returns:
        The runs whose jobs were told to end.

    Raises:
        ExperimentError: SLURM refuses, or does not answer.
    """
    with ledger.lock():
        seen, _ = observe(ledger, identities)
        active = [each for each in identities if seen[each].state in ACTIVE and seen[each].job_id]
        cancel_jobs([str(seen[e].job_id) for e in active if seen[e].executor == "slurm"])
        for identity in active:
            if seen[identity].executor == "slurm":
                continue
            claim = ledger.read_claim(identity) or {}
            record = ledger.read_submission(claim["token"]) or {}
            ledger.write_submission({**record, "cancelled": True})
            os.kill(int(seen[identity].job_id or 0), signal.SIGTERM)
    return active
