"""What a sweep would run, and what it would cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from experiments.spec.cluster import Cluster
from experiments.spec.resolve import ResolvedRun
from experiments.spec.sweep import LoadedSweep
from experiments.store.ledger import Ledger

from .backends import BACKENDS
from .estimate import estimate_iteration, plan_time, run_seconds
from .observe import observe
from .state import State

_ROWS = 60


def render_plan(
    ledger: Ledger,
    loaded: LoadedSweep,
    resolved: Sequence[ResolvedRun],
    cluster_name: str,
    cluster: Cluster,
) -> str:
    """Describe the runs of a sweep: which of them exist, and what the rest would cost."""
    seen, remark = observe(ledger, [each.id for each in resolved])
    missing = [each for each in resolved if seen[each.id].state is State.MISSING]
    counts = Counter(seen[each.id].state for each in resolved)
    ranks = loaded.sweep.resources.ranks
    unit = "GPU" if cluster.gpus_per_node else "rank"
    lines = [
        f"{loaded.name}  ({loaded.path})",
        loaded.sweep.question,
        "",
        f"{len(resolved)} runs, {ranks} {unit}{'s' if ranks > 1 else ''} each: "
        + ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]),
        "",
        _table(loaded, resolved, {each.id: seen[each.id].state for each in resolved}),
        "",
    ]
    estimate = estimate_iteration(
        loaded.sweep.resources.seconds_per_iteration,
        [observation.progress for observation in seen.values()],
    )
    if missing:
        lines.append(
            f"To submit: {len(missing)} on {cluster_name}, {cluster.max_parallel} at a time"
        )
        if BACKENDS[cluster.executor].queues:
            plan = plan_time(cluster, estimate, max(each.iterations for each in missing))
            lines.append(plan.sentence[0].upper() + plan.sentence[1:])
        durations = [run_seconds(estimate, each.iterations) or 0.0 for each in missing]
        if estimate.seconds is None:
            lines.append("How long they take is unknown until one has run")
        else:
            waves = math.ceil(len(missing) / cluster.max_parallel)
            finish = time.time() + waves * max(durations)
            lines.append(
                f"{sum(durations) * ranks / 3600:,.1f} {unit} hours at {estimate.seconds:.3g} s an "
                f"iteration ({estimate.source}); finished about "
                f"{time.strftime('%a %d %b %H:%M', time.localtime(finish))} if they start now"
            )
    else:
        lines.append("Nothing to submit")
    if remark:
        lines += ["", remark]
    return "\n".join(lines)


def _table(loaded: LoadedSweep, resolved: Sequence[ResolvedRun], states: dict[str, State]) -> str:
    rows: list[dict[str, Any]] = []
    base = next(each for each in resolved if each.run.row == loaded.baseline)
    for each in resolved[:_ROWS]:
        rows.append(
            {
                "run": each.run.name,
                "id": each.id,
                "state": states[each.id].value,
                "differs from the baseline in": _difference(base.config.root, each.config.root)
                if each.run.row != loaded.baseline
                else "(baseline)",
            }
        )
    text = tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)
    rest = len(resolved) - _ROWS
    return text + (f"\n... and {rest} more" if rest > 0 else "")


def _difference(base: Any, other: Any) -> str:
    found = [f"{key}={value}" for key, value in _differing(base, other, "")
             if key not in ("SEED", "OUTPUT_DIR")]  # fmt: skip
    shown = ", ".join(found[:4])
    return shown + (f", ... ({len(found)} keys)" if len(found) > 4 else "")


def _differing(base: Any, other: Any, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key in other:
        if key not in base or base[key] != other[key]:
            if isinstance(other[key], dict) and isinstance(base.get(key), dict):
                found += _differing(base[key], other[key], f"{prefix}{key}.")
            else:
                found.append((f"{prefix}{key}", other[key]))
    return found
