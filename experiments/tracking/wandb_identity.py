"""The run of Weights & Biases that a run is logged to."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.store.ledger import Ledger
from experiments.store.records import WandbNames


@dataclass(frozen=True)
class WandbIdentity:
    """Id, name, group and tags of a run in W&B."""

    id: str
    name: str
    group: str
    tags: list[str]


def wandb_identity(ledger: Ledger, identity: str) -> WandbIdentity:
    """Say where a run is logged, by its job and by ``push`` alike.

    A requeued run goes on in the same run of W&B. What ``retry --restart`` began anew is another
    one: its iterations are not those that W&B has.

    Args:
        ledger: has the run.
        identity: the run.

    Raises:
        ExperimentError: the run was never submitted.
    """
    run = ledger.require_run(identity)
    restarts = sum(1 for _ in ledger.run_folder(identity).glob("discarded-*"))
    kept = run.wandb or WandbNames(id=run.id, name=run.name, group=run.sweep)
    suffix = f"-{restarts + 1}" if restarts else ""
    return WandbIdentity(kept.id + suffix, kept.name + suffix, kept.group, run.tags)
