"""Send the runs of a sweep to Weights & Biases, from a machine that can reach it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.jobs.observe import observe
from experiments.jobs.state import State
from experiments.store.ledger import Ledger
from experiments.store.record_files import read_record
from experiments.store.records import AttemptRecord

from .wandb_identity import wandb_identity

logger = logging.getLogger(__name__)


def push(ledger: Ledger, name: str) -> str:
    """Send what W&B lacks of a sweep, from ``metrics.json`` of its runs.

    It may be called any number of times, also while runs train; those that log online themselves
    are left out until they end.

    Returns:
        How many runs were sent, were up to date, and so on.

    Raises:
        ExperimentError: the sweep was never submitted, wandb is missing, or W&B cannot be reached
        or refuses.
    """
    sweep = ledger.read_sweep(name)
    try:
        import wandb
    except ImportError as error:
        raise ExperimentError(
            f"the package 'wandb' cannot be imported ({error}); install it: pip install wandb"
        ) from error
    from yolof_d2.tracking.wandb_run import forget_wandb, kill_wandb, one_line

    seen, remark = observe(ledger, [run.id for run in sweep.runs])
    if remark:
        logger.warning("%s", remark)
    counts: Counter[str] = Counter()
    try:
        for run in sweep.runs:
            running = seen[run.id].state is State.RUNNING
            if running and _sends_itself(ledger.run_folder(run.id)):
                done = "left out; it trains, and sends its figures itself"
            else:
                done = _push_run(ledger, run.id)
            logger.info("%s: %s", run.name, done)
            counts[done.split(";")[0]] += 1
    except BaseException as error:
        kill_wandb()  # it would retry at exit
        forget_wandb()
        if isinstance(error, ExperimentError) or not isinstance(error, Exception):
            raise
        raise ExperimentError(
            f"W&B: {one_line(error)}. Expected a key (WANDB_API_KEY, or 'wandb login'), a network, "
            "and a project that takes figures. Nothing is lost: correct that, and push again"
        ) from error
    wandb.teardown()
    return ", ".join(f"{count} {done}" for done, count in counts.items())


def _push_run(ledger: Ledger, identity: str) -> str:
    from yolof_d2.tracking.push import push_folder
    from yolof_d2.tracking.wandb_run import run_arguments

    run = ledger.read_run(identity)
    if run is None:
        return "not submitted"
    folder = ledger.run_folder(identity)
    here = wandb_identity(ledger, identity)
    own = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
    arguments = run_arguments(
        {**run.config.root, "OUTPUT_DIR": str(folder)},
        {**here.model_dump(), "tags": [*here.tags, *own]},
        ranks=run.ranks,
        provenance=_last_attempt(folder),
    )
    send_model = run.config.get("WANDB.LOG_MODEL", False)
    return push_folder(folder, arguments, send_model=send_model)


def _last_attempt(folder: Path) -> dict[str, Any]:
    attempts = sorted((folder / "attempts").glob("*.json"), key=lambda path: int(path.stem))
    last = read_record(attempts[-1], AttemptRecord) if attempts else None
    return {} if last is None else last.model_dump()


def _sends_itself(folder: Path) -> bool:
    """Whether the job logs online; W&B names the folder of an offline run otherwise."""
    latest = folder / "wandb" / "latest-run"
    return latest.is_symlink() and os.readlink(latest).startswith("run-")
