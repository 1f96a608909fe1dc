"""Read ``metrics.json`` and sum it up. Needs no torch: statuses and reports read it too."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a metrics file as if the run had never been interrupted.

    A run that resumes from a checkpoint repeats what came after it: a record voids those of the
    same and later iterations before it. A process that was killed may leave half a line, to which
    the next one appends its first; what cannot be read is left out. The file may be missing.

    Returns:
        One record per iteration, ascending; ``iteration`` is among its names.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    records: list[dict[str, float]] = []
    for line in lines:
        record = _parse(line)
        if record is None:
            continue
        while records and records[-1]["iteration"] >= record["iteration"]:
            records.pop()
        records.append(record)
    return records


def _parse(line: str) -> dict[str, float] | None:
    # Records are flat: what follows the last brace is whole, if anything is.
    start = line.rfind("{")
    try:
        record = json.loads(line[start:])
    except ValueError:
        return None
    return record if isinstance(record, dict) and "iteration" in record else None


def summarise(records: list[dict[str, float]]) -> dict[str, Any]:
    """Sum up the records of a whole run: what it cost, and how it matched.

    Returns:
        Medians of speed, of seconds of an evaluation and of a checkpoint; the highest memory of
        training and of evaluation; means of the match statistics. None where nothing was measured;
        memory holds only what was.
    """
    seconds = _values(records, "time")
    return {
        "median_seconds_per_iteration": _median(seconds),
        "training_minutes": _training_minutes(records),
        "images_per_second": _median(_values(records, "train/images_per_second")),
        "data_time_share": _median(_values(records, "train/data_time_share")),
        "peak_memory_mib": _peak_memory(records, "train"),
        "evaluation": {
            "seconds": _median(_values(records, "eval/seconds")),
            "images_per_second": _median(_values(records, "eval/images_per_second")),
            "peak_memory_mib": _peak_memory(records, "eval"),
        },
        "checkpoint_seconds": _median(_values(records, "checkpoint/seconds")),
        "matching": {
            name.removeprefix("match/"): statistics.fmean(_values(records, name))
            for name in sorted({name for record in records for name in record})
            if name.startswith("match/") and _values(records, name)
        },
    }


def _values(records: list[dict[str, float]], name: str) -> list[float]:
    return [record[name] for record in records if not math.isnan(record.get(name, math.nan))]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _peak_memory(records: list[dict[str, float]], phase: str) -> dict[str, float]:
    peaks = {
        kind: _values(records, f"{phase}/memory_{kind}_mib")
        for kind in ("process", "allocated", "reserved")
    }
    return {kind: round(max(values), 1) for kind, values in peaks.items() if values}


def _training_minutes(records: list[dict[str, float]]) -> float:
    """Return the time of iterations alone, at the speed that was measured last."""
    total, done = 0.0, 0.0
    for record in records:
        if "time" in record:
            total += record["time"] * (record["iteration"] + 1 - done)
            done = record["iteration"] + 1
    return total / 60
