"""Every figure of every run as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

from experiments.store.records import ERRORS, METRICS, RECALLS, SHARES, SIZES

from .outcomes import Outcome

_MEMORIES = ("process", "allocated", "reserved")

_PATHS = {
    **{name: f"results.bbox.{name}" for name in RECALLS},
    "batch_size": "batch_size",
    "ranks": "world_size",
    "training_minutes": "training_minutes",
    "images_per_second": "images_per_second",
    "data_time_share": "data_time_share",
    "checkpoint_seconds": "checkpoint_seconds",
    "eval_seconds": "evaluation.seconds",
    "eval_images_per_second": "evaluation.images_per_second",
    **{f"train_memory_{kind}_mib": f"peak_memory_mib.{kind}" for kind in _MEMORIES},
    **{f"eval_memory_{kind}_mib": f"evaluation.peak_memory_mib.{kind}" for kind in _MEMORIES},
    **{f"positives_per_gt{size}": f"matching.positives_per_gt{size}" for size in SIZES},
    **{f"{name}_anchor_share": f"matching.{name}_anchor_share" for name in SHARES},
    **{f"error_{name}": f"results.errors.{name}" for name in ERRORS},
    "started": "started",
    "command": "command",
}
"""Column -> where a summary has its value."""


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """Return one line per run, with numbers as in ``summary.json``; what a run lacks is empty."""
    axes = list(dict.fromkeys(axis for outcome in outcomes for axis in outcome.run.cells))
    boxes = [outcome.figure("results.bbox") or {} for outcome in outcomes]
    classes = [name for name in dict.fromkeys(chain(*boxes)) if name.startswith("AP-")]
    columns: dict[str, Callable[[Outcome], Any]] = {
        **{name: methodcaller("figure", f"results.bbox.{name}") for name in METRICS},
        "seconds_per_iteration": methodcaller("figure", "median_seconds_per_iteration"),
        "memory_mib": attrgetter("memory"),
        "iterations": methodcaller("figure", "iterations"),
        "commit": methodcaller("figure", "commit"),
        **{name: methodcaller("figure", path) for name, path in _PATHS.items()},
        "starts": attrgetter("starts"),
        "requeues": attrgetter("requeues"),
    }
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "name", *axes, "seed", "state", *columns, *classes])
    for outcome, box in zip(outcomes, boxes, strict=True):
        run = outcome.run
        cells = [run.cells.get(axis, "") for axis in axes]
        figures = [*(read(outcome) for read in columns.values()), *map(box.get, classes)]
        state = outcome.seen.state.value
        writer.writerow([run.id, run.name, *cells, run.seed, state, *figures])
    return stream.getvalue()
