"""Training hooks: memory, best checkpoint, and the summary at the end."""

from __future__ import annotations

import json
import logging
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

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


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
        if self.trainer.iter + 1 < self.trainer.max_iter:  # stopped early: an error, or a signal
            return
        seconds = [value for value, _ in get_event_storage().history("time").values()] or [
            float("nan")
        ]
        results = getattr(self.trainer, "_last_eval_results", None) or {}
        summary = {
            "iterations": self.trainer.max_iter,
            "median_seconds_per_iteration": float(np.median(seconds)),
            "training_minutes": float(np.sum(seconds)) / 60,
            "peak_memory_mib": {name: round(value, 1) for name, value in peak_memory_mib().items()},
            "results": results,
            **self._provenance,
        }
        with open(self._path, "w") as file:
            json.dump(summary, file, indent=2)
        boxes = results.get("bbox", {})
        row = {
            name: boxes[name]
            for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
            if name in boxes
        }
        row["s/iter"] = summary["median_seconds_per_iteration"]
        row.update({f"{name} MiB": value for name, value in peak_memory_mib().items()})
        logger.info("Finished; written to %s\n%s", self._path, create_small_table(row))
