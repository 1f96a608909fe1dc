"""Send the records of a run folder that Weights & Biases lacks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolof_d2.measure.metrics_file import read_metrics

from .wandb_run import WandbRun, digest, quiet_wandb

_INIT_SECONDS = 60.0
_FINISH_SECONDS = 3600.0  # weights may be large
_SETTLE_SECONDS = 10.0
_REQUEST_SECONDS = 20


def push_folder(folder: Path, arguments: Mapping[str, Any], *, send_model: bool) -> str:
    """Send what W&B lacks of a run; also while it trains, and any number of times.

    Args:
        folder: ``OUTPUT_DIR`` of the run.
        arguments: of :func:`~yolof_d2.tracking.wandb_run.run_arguments`.
        send_model: also send the final weights, which W&B stores once.

    Returns:
        The outcome in a word, perhaps with details after a semicolon.

    Raises:
        Exception: any of W&B's; there is no key, no network, or its server refuses.
    """
    records = read_metrics(folder / "metrics.json")
    if not records:
        return "no figures yet"
    iterations = arguments["config"]["SOLVER.MAX_ITER"]
    finished = records[-1]["iteration"] >= iterations - 1
    weights = folder / "model_final.pth"
    model = weights if send_model and finished and weights.is_file() else None
    entity, project = arguments["entity"], arguments["project"]
    path = "/".join([*([entity] if entity else []), project, arguments["id"]])
    if model is None and has_all(path, records, seconds=0):
        return "up to date"
    with tempfile.TemporaryDirectory() as files:
        limits = (_INIT_SECONDS, _FINISH_SECONDS)
        run = WandbRun(arguments, Path(files), mode="online", limits=limits)
        sent = run.log(records, folder / "pictures")
        run.finish(records, finished=finished, model=model)
    if not has_all(run.path, records, seconds=_SETTLE_SECONDS):
        raise RuntimeError(f"the server did not take everything of {run.path}")
    return f"sent; {sent} records up to iteration {int(records[-1]['iteration'])}, {run.url}"


def has_all(
    path: str, records: list[dict[str, float]], *, seconds: float = _SETTLE_SECONDS
) -> bool:
    """Ask the server, for up to ``seconds``, whether it shows a run as it is here.

    Args:
        path: entity (or not), project and id of the run.
        records: all of its ``metrics.json``.
    """
    wandb = quiet_wandb()
    api = wandb.Api(timeout=_REQUEST_SECONDS)
    deadline = time.monotonic() + seconds
    while True:
        try:
            run = api.run(path)
            if run.lastHistoryStep >= records[-1]["iteration"] and all(
                run.summary.get(name) == value for name, value in digest(records).items()
            ):
                return True
        except wandb.errors.CommError as error:
            if not isinstance(error.exc, ValueError):  # a run that is not there
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(1)
        api.flush()  # its cache
