"""A run of Weights & Biases, made from ``metrics.json``: its step is the iteration.

Live logging, a resumed run and a later push all send the records of ``metrics.json`` that W&B does
not have yet.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from yolof_d2.measure.metrics_file import summarise

logger = logging.getLogger(__name__)


def run_arguments(
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    *,
    ranks: int,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of ``wandb.init`` as plain JSON.

    Args:
        config: the resolved config, nested. W&B's environment variables for project and entity win
            over its ``WANDB`` node.
        identity: ``id``, ``name``, ``group`` (None for none) and ``tags`` of the run.
        ranks: number of processes.
        provenance: commit, versions and hardware, as ``describe_run`` gives them.
    """
    node = config.get("WANDB", {})  # old runs have none
    code = {key: provenance.get(key) for key in ("commit", "versions", "hardware")}
    return {
        "project": os.environ.get("WANDB_PROJECT") or node.get("PROJECT", "yolof_d2"),
        "entity": os.environ.get("WANDB_ENTITY") or node.get("ENTITY") or None,
        **{key: identity[key] for key in ("id", "name", "group")},
        "job_type": "train",
        "tags": sorted({*node.get("TAGS", ()), *identity["tags"]}),
        "config": {**flatten(config), "ranks": ranks, **flatten(code)},
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts into one, with dots in its keys and without None."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def digest(records: list[dict[str, float]]) -> dict[str, float]:
    """Return the cost of a run, from all of ``metrics.json``, as items of W&B's summary."""
    flat = flatten(summarise(records), prefix="summary.")
    return {name.replace(".", "/"): value for name, value in flat.items()}


class WandbRun:
    """A W&B run that is being written.

    Attributes:
        next_step: iterations before it are with W&B already; 0 for a new run, and always offline.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        files: Path,
        *,
        mode: str | None,
        limits: tuple[float, float],
    ):
        """Open the run, or go on with it.

        Args:
            arguments: of :func:`run_arguments`.
            files: where W&B keeps its own files, in a folder ``wandb``.
            mode: ``"online"``, ``"offline"``, or None for what ``WANDB_MODE`` says.
            limits: seconds in which W&B must answer, and at the end have everything.

        Raises:
            Exception: any of W&B's; there is no key, no network, no answer or no place for files.
        """
        self._wandb = wandb = quiet_wandb()
        self._run = wandb.init(
            **arguments,
            dir=files,
            mode=mode,
            resume="allow",
            settings=wandb.Settings(
                init_timeout=limits[0],
                finish_timeout=limits[1],
                finish_timeout_raises=True,
                console="off",  # log.txt is enough
                disable_git=True,  # a snapshot may lie in a checkout of another commit
                disable_code=True,
                stop_fn=_refuse_to_stop,
            ),
        )
        self._run.config.update(arguments["config"], allow_val_change=True)
        self._run.define_metric("*", step_metric="iteration")
        self.next_step: int = self._run.starting_step
        self._sends_pictures = True

    @property
    def is_online(self) -> bool:
        """Return whether a server gets it."""
        return not (self._run.offline or self._run.disabled)

    @property
    def path(self) -> str:
        """Return entity, project and id, as W&B's API wants them."""
        return f"{self._run.entity}/{self._run.project}/{self._run.id}"

    @property
    def url(self) -> str:
        """Return the address of its page; empty offline."""
        return self._run.url or ""

    def log(self, records: Iterable[dict[str, float]], pictures: Path) -> int:
        """Send the records that W&B does not have; return their number.

        Args:
            records: of ``metrics.json``, ascending.
            pictures: folder of ``<iteration>.png``; a picture goes with its iteration's record.

        Raises:
            Exception: any of W&B's; its process is gone.
        """
        sent = 0
        for record in records:
            step = int(record["iteration"])
            if step < self.next_step:
                continue
            # W&B cannot sort by NaN.
            figures = {name: value for name, value in record.items() if math.isfinite(value)}
            self._log(figures, pictures / f"{step:07d}.png", step)
            self.next_step = step + 1
            sent += 1
        return sent

    def _log(self, figures: dict[str, float], picture: Path, step: int) -> None:
        # One call per iteration: W&B drops what comes later for the same step.
        problem: Exception | None = None
        if self._sends_pictures and picture.is_file():
            try:
                media = {"predictions": self._wandb.Image(str(picture))}
                self._run.log({**figures, **media}, step=step, commit=True)
                return
            except Exception as error:  # noqa: BLE001  W&B raises any; figures need no picture
                problem = error
        self._run.log(figures, step=step, commit=True)
        if problem is not None:
            self._sends_pictures = False
            logger.warning("W&B gets no more pictures of this start: %s", one_line(problem))

    def finish(
        self, records: list[dict[str, float]], *, finished: bool, model: Path | None
    ) -> None:
        """Send the summary and end the run.

        Args:
            records: all of ``metrics.json``.
            finished: whether training came to its end; otherwise W&B shows the run as failed.
            model: weights to upload as an artifact.

        Raises:
            TimeoutError: W&B did not take everything in time.
            Exception: any of W&B's; its process is gone.
        """
        self._run.summary.update(digest(records))
        problem = self._show_tables(records) if finished else None
        if model is not None:
            artifact = self._wandb.Artifact(f"{self._run.id}-weights", type="model")
            artifact.add_file(str(model))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if finished else 1)
        if problem is not None:
            logger.warning("W&B did not take the tables of the evaluation: %s", one_line(problem))

    def abandon(self) -> None:
        """End the run after an error; otherwise W&B's threads would go on, and complain."""
        with suppress(Exception):
            self._run.finish(exit_code=1)

    def _show_tables(self, records: list[dict[str, float]]) -> Exception | None:
        # Once, at the end, as a table is an artifact that W&B waits for. The values of every
        # evaluation are among the figures.
        try:
            for key, prefix in (("per_class_AP", "bbox/AP-"), ("errors", "errors/")):
                if rows := _last_table(records, prefix):
                    table = self._wandb.Table(columns=["name", "percent"], data=rows)
                    self._run.summary.update({f"tables/{key}": table})
        except Exception as error:  # noqa: BLE001  W&B raises any; the figures are sent
            return error
        return None


def quiet_wandb() -> ModuleType:
    """Import W&B, and keep it from printing and from asking for a key."""
    import wandb

    # On a full disk, every line of its debug.log would be a stack trace on the console.
    logging.getLogger("wandb").setLevel(logging.CRITICAL)
    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def kill_wandb() -> None:
    """Kill W&B's own process, so that what waits for it goes on with an error."""
    with suppress(OSError):
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "wandb-core\n":
                    os.kill(int(pid), signal.SIGKILL)


def forget_wandb() -> None:
    """Detach from W&B's process, so that exit does not block."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits as its process did
        wandb.teardown()


def _last_table(records: list[dict[str, float]], prefix: str) -> list[list[Any]]:
    """Return names, without ``prefix``, and values of the last record that has any."""
    for record in reversed(records):
        found = {n.removeprefix(prefix): v for n, v in record.items() if n.startswith(prefix)}
        if found:
            return [[name, value] for name, value in found.items() if math.isfinite(value)]
    return []


def one_line(error: BaseException) -> str:
    """Return kind and first line of an error, for a log."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{kind}: {lines[0][:300].rstrip('.')}" if lines else kind


def _refuse_to_stop() -> None:
    # By default the button interrupts one rank, and the others wait for it.
    logger.warning("W&B's stop button stops nothing here; use 'python -m experiments cancel'")
