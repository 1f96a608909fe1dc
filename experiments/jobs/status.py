"""The table that ``status`` shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from experiments.store.files import seconds
from experiments.store.ledger import Ledger
from experiments.store.records import SweepRun

from .estimate import format_duration
from .observe import observe
from .state import Observation, State


def status_table(ledger: Ledger, name: str) -> str:
    """State, progress and place of each run of a sweep, as it was last submitted.

    Raises:
        ExperimentError: nothing of it was submitted.
    """
    sweep = ledger.read_sweep(name)
    runs = sweep.runs
    seen, remark = observe(ledger, [run.id for run in runs])
    rows = [_row(run, seen[run.id]) for run in runs]
    counts = Counter(seen[run.id].state for run in runs)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    table = tabulate(_without_empty(rows), headers="keys", tablefmt="simple", disable_numparse=True)
    lines = [f"{name}: {summary}  ({ledger.root})", "", table]
    return "\n".join([*lines, *(["", remark] if remark else [])])


def _row(run: SweepRun, seen: Observation) -> dict[str, str]:
    progress = seen.progress
    points, memory = progress.evaluations, progress.peak_memory_mib
    mib = memory.get("allocated", memory.get("process"))
    running = seen.state is State.RUNNING
    iterations = progress.max_iteration or run.iterations
    return {
        "run": run.name,
        "id": run.id,
        "state": seen.state.value,
        "iteration": "" if progress.iteration is None else f"{progress.iteration}/{iterations}",
        "ETA": format_duration(progress.eta_seconds) if running else "",
        "AP": "" if not points or points[-1][1] is None else f"{points[-1][1]:.1f}",
        "MiB": f"{mib:.0f}" if mib is not None else "",
        "starts": str(len(progress.attempts) or ""),
        "job": seen.job_id or "",
        "node": seen.nodes,
        "updated": _age(progress.updated) if running else "",
        "why": seen.reason,
    }


def _age(stamp: str | None) -> str:
    if not stamp:
        return ""
    return f"{format_duration(max(time.time() - seconds(stamp), 0))} ago"


def _without_empty(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out columns that are empty everywhere, so that a table fits a terminal."""
    used = [key for key in rows[0] if any(row[key] for row in rows)] if rows else []
    return [{key: row[key] for key in used} for row in rows]
