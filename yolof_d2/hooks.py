"""Training hooks: memory, best checkpoint, a stop on request, and the summary at the end."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.engine import BestCheckpointer, HookBase
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import create_small_table
from fvcore.common.checkpoint import Checkpointer

from .errors import TrainingStopped

logger = logging.getLogger(__name__)

MIB = 1024**2


def peak_memory_mib() -> dict[str, float]:
    """Highest memory use so far, in MiB: ``process`` (resident), and on a GPU ``allocated`` and
    ``reserved``.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["allocated"] = torch.cuda.max_memory_allocated() / MIB
        peak["reserved"] = torch.cuda.max_memory_reserved() / MIB
    return peak


class MemoryMonitor(HookBase):
    """Writes the peak memory of this process as scalars
    ``memory/peak_{process,allocated,reserved}_mib``.
    """

    def __init__(self, period: int = 20):
        """
        Args:
            period: iterations between two readings.
        """
        self._period = period

    def after_step(self) -> None:
        if (
            self.trainer.iter + 1
        ) % self._period == 0 or self.trainer.iter + 1 == self.trainer.max_iter:
            scalars = {
                f"memory/peak_{name}_mib": value for name, value in peak_memory_mib().items()
            }
            get_event_storage().put_scalars(smoothing_hint=False, **scalars)


class ResumableBestCheckpointer(BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which remembers the best value over a resume."""

    def _best_checking(self) -> None:
        # Detectron2 saves before it notes the new value, so that model_best.pth, from which a
        # resume may start, would hold the old one.
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, 0))
        improves = self.best_metric is None or (value is not None and value > self.best_metric)
        if value is None:
            self._logger.warning("TEST.BEST_METRIC %s was not computed", self._val_metric)
        elif improves and self._update_best(value, iteration):
            self._checkpointer.save(self._file_prefix, iteration=iteration)

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class StopOnRequest(HookBase):
    """Ends training at an iteration boundary when a rank was asked to stop, with a checkpoint.

    It must be the last hook: what is due at this iteration, such as an evaluation, comes before.
    """

    def __init__(self, checkpointer: Checkpointer):
        """
        Args:
            checkpointer: saves on the main rank; its other checkpoints are kept.
        """
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        """
        Raises:
            TrainingStopped: on every rank in the same iteration.
        """
        reason = self.trainer.agreed_stop
        done = self.trainer.iter + 1
        if reason and done < self.trainer.max_iter:
            logger.info("Stopping after %d iterations: %s", done, reason)
            self._checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise TrainingStopped(reason)


class RunSummary(HookBase):
    """At the end of a finished run, logs results, speed and memory, and writes them to
    ``summary.json``.
    """

    def __init__(self, output_dir: str, describe: Callable[[], dict[str, Any]]):
        """
        Args:
            output_dir: where ``summary.json`` goes.
            describe: returns what else to record (provenance); called at the start, as the code may
                change on disk while it runs.
        """
        self._path = os.path.join(output_dir, "summary.json")
        self._describe = describe

    def before_train(self) -> None:
        self._provenance = self._describe()

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # stopped early: an error, or a signal
            return
        # Detectron2 does not time the first iterations; a resumed run may have none left to do.
        timed = get_event_storage().histories().get("time")
        seconds = [value for value, _ in timed.values()] if timed else [float("nan")]
        results = getattr(self.trainer, "_last_eval_results", None) or {}
        summary = {
            "iterations": self.trainer.max_iter,
            "median_seconds_per_iteration": float(np.median(seconds)),
            "training_minutes": float(np.sum(seconds)) / 60,
            "peak_memory_mib": {name: round(value, 1) for name, value in peak_memory_mib().items()},
            "results": results,
            **self._provenance,
        }
        partial = f"{self._path}.partial"  # who finds the file finds all of it
        with open(partial, "w") as file:
            json.dump(_nan_to_none(summary), file, indent=2, allow_nan=False)
        os.replace(partial, self._path)
        boxes = results.get("bbox", {})
        row = {
            name: boxes[name]
            for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
            if name in boxes
        }
        row["s/iter"] = summary["median_seconds_per_iteration"]
        row.update({f"{name} MiB": value for name, value in peak_memory_mib().items()})
        logger.info("Finished; written to %s\n%s", self._path, create_small_table(row))


def _nan_to_none(value: Any) -> Any:
    """Replace NaN in nested dicts (AP of a size that no object has), which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
