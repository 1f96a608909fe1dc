"""Log a training to Weights & Biases, without ever disturbing it."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from yolof_d2.files import write_text
from yolof_d2.measure.metrics_file import read_metrics
from yolof_d2.measure.provenance import describe_run

from .push import has_all
from .wandb_run import WandbRun, forget_wandb, kill_wandb, one_line, run_arguments

logger = logging.getLogger(__name__)

_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0
_SETTLE_SECONDS = 5.0
_STOP_SECONDS = 10.0  # for a run that will go on: its job has little time to be requeued


class WandbWriter(EventWriter):
    """Send ``metrics.json`` to W&B while it grows; it comes after the writer of that file.

    A thread talks to W&B. If W&B cannot be reached, the run is logged offline, in
    ``OUTPUT_DIR/wandb``; if it fails later, training goes on without. Either is one line in the
    log. What W&B lacks is sent when the run goes on, or by a push.

    The id is ``WANDB_RUN_ID``, which a sweep sets, or is kept in ``OUTPUT_DIR/wandb.json``.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        command: str = "",
        is_resumed: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            command: trains the same; empty for that of this process.
            is_resumed: whether this start goes on with a run, which then keeps its id; asked when
                training has begun.
        """
        self._cfg = cfg
        self._is_resumed = is_resumed
        self._command = command
        self._folder = Path(cfg.OUTPUT_DIR)
        self._metrics = self._folder / "metrics.json"
        self._read = 0  # bytes of it
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = False
        # Not in the thread: loader processes forked meanwhile would inherit a locked import.
        with self._harmless():
            import wandb  # noqa: F401

    @staticmethod
    def is_wanted(cfg: CfgNode) -> bool:
        """Return whether config and environment ask for it."""
        return cfg.WANDB.ENABLED and os.environ.get("WANDB_MODE") != "disabled"

    def write(self) -> None:
        if self._failed:
            return
        with self._harmless():
            records = self._new_records()
            if not records:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, args=(self._arguments(),), name="wandb-writer", daemon=True
                )
                self._thread.start()
            self._queue.put(records)

    def close(self) -> None:
        """Wait a limited time until W&B has everything."""
        if self._thread is None or self._failed:
            return
        with self._harmless():
            records = read_metrics(self._metrics)
            finished = records[-1]["iteration"] >= self._cfg.SOLVER.MAX_ITER - 1
            self._queue.put(_End(records, finished))
            # W&B has the same limit, but may not keep it.
            self._thread.join(_INIT_SECONDS + _FINISH_SECONDS if finished else _STOP_SECONDS)
            if self._thread.is_alive():
                self._fail(TimeoutError("it did not take everything in time"))
                kill_wandb()
                self._thread.join(_STOP_SECONDS)

    def _new_records(self) -> list[dict[str, float]]:
        if not self._read:
            records = read_metrics(self._metrics)
            self._read = self._metrics.stat().st_size
            return records
        with self._metrics.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        self._read += len(lines)
        return [json.loads(line) for line in lines.splitlines()]

    def _arguments(self) -> dict[str, Any]:
        note = self._folder / "wandb.json"
        kept = json.loads(note.read_text())["id"] if self._is_resumed() and note.is_file() else None
        arguments = run_arguments(
            self._cfg,
            {
                "id": os.environ.get("WANDB_RUN_ID") or kept or secrets.token_hex(4),
                "name": os.environ.get("WANDB_NAME") or self._folder.resolve().name,
                "group": os.environ.get("WANDB_RUN_GROUP"),
                "tags": [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag],
            },
            ranks=comm.get_world_size(),
            provenance=describe_run(self._command),
        )
        write_text(note, json.dumps(arguments, indent=1) + "\n", durable=False)
        return arguments

    def _work(self, arguments: dict[str, Any]) -> None:
        run = None
        with self._harmless():
            run = self._open(arguments)
            while not isinstance(item := self._queue.get(), _End):
                run.log(item, self._folder / "pictures")
            weights = self._folder / "model_final.pth"
            send_weights = self._cfg.WANDB.LOG_MODEL and item.finished and weights.is_file()
            model = weights if send_weights else None
            run.finish(item.records, finished=item.finished, model=model)
            # W&B does not report what its server refused.
            if run.is_online and not has_all(run.path, item.records, seconds=_SETTLE_SECONDS):
                raise RuntimeError("its server did not take everything")
        if self._failed and run is not None:
            run.abandon()
        if run is None or self._failed or not run.is_online:
            forget_wandb()  # completes the file of an offline run

    def _open(self, arguments: dict[str, Any]) -> WandbRun:
        limits = (_INIT_SECONDS, _FINISH_SECONDS)
        # By default in the home folder, which not every node may write to.
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(variable, str(self._folder / "wandb"))
        try:
            return WandbRun(arguments, self._folder, mode=None, limits=limits)
        except Exception as error:
            if self._failed:  # and the training is over
                raise
            kill_wandb()  # it holds the id
            forget_wandb()
            run = WandbRun(arguments, self._folder, mode="offline", limits=limits)
            self._warn(f"cannot be reached; logging goes to {self._folder / 'wandb'}", error)
            return run

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, training goes on
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._warn("failed; training goes on, and metrics.json has everything", error)

    def _warn(self, what: str, error: BaseException) -> None:
        sweep = os.environ.get("WANDB_RUN_GROUP")
        own = f"yolof_d2.tracking {self._folder}"
        push = f"python -m {f'experiments push {sweep}' if sweep else own}"
        logger.warning("W&B %s. To send it later: %s  (%s)", what, push, one_line(error))


@dataclass(frozen=True)
class _End:
    """Last item of the queue."""

    records: list[dict[str, float]]
    finished: bool
