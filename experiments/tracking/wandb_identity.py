"""Which run of Weights & Biases a run is."""

from __future__ import annotations

from typing import Any

from experiments.errors import ExperimentError
from experiments.store.ledger import Ledger


def wandb_identity(ledger: Ledger, identity: str) -> dict[str, Any]:
    """Where a run is logged, by its job and by ``push`` alike.

    A requeued run goes on in the same run of W&B. What ``retry --restart`` began anew is another
    one: its iterations are not those that W&B has.

    Args:
        ledger: has the run.
        identity: the run.

    Returns:
        ``id``, ``name``, ``group`` and ``tags``.

    Raises:
        ExperimentError: the run was never submitted.
    """
    folder = ledger.run_folder(identity)
    run = ledger.read_run(identity)
    if run is None:
        raise ExperimentError(f"{folder / 'run.json'} is missing; submit the run again")
    restarts = sum(1 for _ in folder.glob("discarded-*"))
    kept = run["wandb"]
    suffix = f"-{restarts + 1}" if restarts else ""
    return {
        "id": kept["id"] + suffix,
        "name": kept["name"] + suffix,
        "group": kept["group"],
        "tags": run["tags"],
    }
