"""The table that ``status`` shows."""

from __future__ import annotations

import time

from tabulate import tabulate

from experiments.store.ledger import Ledger
from experiments.store.record_files import seconds
from experiments.store.records import SweepRun

from .estimate import format_duration
from .observe import observe
from .state import Observation, State, count_states


def status_table(ledger: Ledger, name: str) -> str:
    """Return a table of the runs of a sweep, as it was last submitted."""
    sweep = ledger.read_sweep(name)
    seen, remark = observe(ledger, [run.id for run in sweep.runs])
    rows = [_row(run, seen[run.id]) for run in sweep.runs]
    used = [key for key in rows[0] if any(row[key] for row in rows)] if rows else []
    table = tabulate([[row[key] for key in used] for row in rows], used, disable_numparse=True)
    states = count_states(each.state for each in seen.values())
    lines = [f"{name}: {states}  ({ledger.root})", "", table]
    return "\n".join([*lines, *(["", remark] if remark else [])])


def _row(run: SweepRun, seen: Observation) -> dict[str, str]:
    progress = seen.progress
    points, memory = progress.evaluations, progress.peak_memory_mib
    mib = memory.get("allocated", memory.get("process"))
    running = seen.state is State.RUNNING
    iterations = progress.max_iteration or run.iterations
    age = max(time.time() - seconds(progress.updated), 0) if progress.updated else None
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
        "updated": f"{format_duration(age)} ago" if running and progress.updated else "",
        "why": seen.reason,
    }
