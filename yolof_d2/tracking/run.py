"""One run of Weights & Biases, made from ``metrics.json``: its step is the iteration.

Live logging, a resumed run and a later push take this same path: what W&B has decides where to go
on, and ``metrics.json`` has what it lacks.
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
    """What W&B shows of a run beside its figures.

    Args:
        config: the resolved config, nested. W&B's environment variables for project and entity go
            before its ``WANDB`` node.
        identity: ``id``, ``name``, ``group`` (None for none) and ``tags`` of the run.
        ranks: number of processes.
        provenance: commit, versions and hardware, as ``describe_run`` gives them.

    Returns:
        Arguments of ``wandb.init``, as plain JSON.
    """
    node = config.get("WANDB", {})  # runs of before have none
    code = {key: provenance.get(key) for key in ("commit", "versions", "hardware")}
    return {
        "project": os.environ.get("WANDB_PROJECT") or node.get("PROJECT", "yolof_d2"),
        "entity": os.environ.get("WANDB_ENTITY") or node.get("ENTITY") or None,
        "id": identity["id"],
        "name": identity["name"],
        "group": identity["group"],
        "job_type": "train",
        "tags": sorted({*node.get("TAGS", ()), *identity["tags"]}),
        "config": {**flatten(config), "ranks": ranks, **flatten(code)},
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dots in its keys; None is left out."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def digest(records: list[dict[str, float]]) -> dict[str, float]:
    """What a run cost, as items of W&B's summary beside the last value of every figure.

    Args:
        records: all of ``metrics.json``.
    """
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
        init_seconds: float,
        finish_seconds: float,
    ):
        """Open the run, or go on with it.

        Args:
            arguments: of :func:`run_arguments`.
            files: where W&B keeps its own files, in a folder ``wandb``.
            mode: ``"online"``, ``"offline"``, or None for what ``WANDB_MODE`` says.
            init_seconds: W&B must have answered by then.
            finish_seconds: W&B must have everything by then, at the end.

        Raises:
            Exception: of W&B's; there is no key, no network, no answer or no place for files.
        """
        self._wandb = wandb = quiet_wandb()
        self._run = wandb.init(
            **arguments,
            dir=files,
            mode=mode,
            resume="allow",
            settings=wandb.Settings(
                init_timeout=init_seconds,
                finish_timeout=finish_seconds,
                finish_timeout_raises=True,
                console="off",  # log.txt is enough
                disable_git=True,  # a copy of the code that lies in some checkout is not its commit
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
        """Whether a server gets it."""
        return not (self._run.offline or self._run.disabled)

    @property
    def path(self) -> str:
        """Entity, project and id, as W&B's API wants them."""
        return f"{self._run.entity}/{self._run.project}/{self._run.id}"

    @property
    def url(self) -> str:
        """Its page; empty offline."""
        return self._run.url or ""

    def log(self, records: Iterable[dict[str, float]], pictures: Path) -> int:
        """Send what W&B does not have.

        Args:
            records: of ``metrics.json``, ascending.
            pictures: folder of ``<iteration>.png``; a picture goes with its iteration's record.

        Returns:
            How many records were sent.

        Raises:
            Exception: of W&B's; its process is gone.
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
        # One call for all of an iteration: W&B drops what comes for a step that is done.
        problem: Exception | None = None
        if self._sends_pictures and picture.is_file():
            try:
                media = {"predictions": self._wandb.Image(str(picture))}
                self._run.log({**figures, **media}, step=step, commit=True)
                return
            except Exception as error:  # noqa: BLE001  it asks its server first, in any way
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
            finished: whether training came to its end; W&B calls the run failed if not.
            model: weights to upload as an artifact.

        Raises:
            TimeoutError: W&B did not take everything in time.
            Exception: of W&B's; its process is gone.
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
        # Only once, at the end: for a table W&B makes an artifact, and waits until its server has
        # it. The values of every evaluation are among the figures.
        tables = {
            "tables/per_class_AP": _last_table(records, "bbox/AP-"),
            "tables/errors": _last_table(records, "errors/"),
        }
        try:
            for key, rows in tables.items():
                if rows:
                    table = self._wandb.Table(columns=["name", "percent"], data=rows)
                    self._run.summary.update({key: table})
        except Exception as error:  # noqa: BLE001  of any kind; the figures are what counts
            return error
        return None


def quiet_wandb() -> ModuleType:
    """W&B's package, which from now on prints nothing, and asks nobody for a key."""
    import wandb

    # On a full disk, every line of its debug.log would be a stack trace on the console.
    logging.getLogger("wandb").setLevel(logging.CRITICAL)
    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def kill_wandb() -> None:
    """End W&B's own process; what waits for it goes on, with an error."""
    with suppress(OSError):
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "wandb-core\n":
                    os.kill(int(pid), signal.SIGKILL)


def forget_wandb() -> None:
    """Let go of W&B's process, in whatever state; the interpreter does not wait for it at exit."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits as its process did
        wandb.teardown()


def _last_table(records: list[dict[str, float]], prefix: str) -> list[list[Any]]:
    """Names and values of the last record that has any beginning so."""
    for record in reversed(records):
        found = {n.removeprefix(prefix): v for n, v in record.items() if n.startswith(prefix)}
        if found:
            return [[name, value] for name, value in found.items() if math.isfinite(value)]
    return []


def one_line(error: BaseException) -> str:
    """Kind and first line of an error, for a log."""
    lines = str(error).strip().splitlines()
    return (
        f"{type(error).__name__}: {lines[0][:300].rstrip('.')}" if lines else type(error).__name__
    )


def _refuse_to_stop() -> None:
    # By default the button interrupts one rank, and the others wait for it.
    logger.warning("W&B's stop button stops nothing here; use 'python -m experiments cancel'")
