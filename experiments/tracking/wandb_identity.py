"""The run of Weights & Biases that a run is logged to."""

from __future__ import annotations

from experiments.store.ledger import Ledger
from experiments.store.records import WandbNames


class WandbIdentity(WandbNames):
    """Id, name, group and tags of a run in W&B."""

    tags: list[str]


def wandb_identity(ledger: Ledger, identity: str) -> WandbIdentity:
    """Return where a run is logged, by its job and by ``push`` alike.

    A requeued run continues in the same W&B run. ``retry --restart`` starts another one, since its
    iterations begin again.

    Raises:
        ExperimentError: the run was never submitted.
    """
    run = ledger.require_run(identity)
    restarts = sum(1 for _ in ledger.run_folder(identity).glob("discarded-*"))
    kept = run.wandb or WandbNames(id=run.id, name=run.name, group=run.sweep)
    suffix = f"-{restarts + 1}" if restarts else ""
    return WandbIdentity(
        id=kept.id + suffix, name=kept.name + suffix, group=kept.group, tags=run.tags
    )
