"""The table that ``plan`` shows: runs, their states, and the cost of those that are missing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from experiments.spec.cluster import Cluster
from experiments.spec.resolve import ResolvedRun
from experiments.spec.sweep import LoadedSweep
from experiments.store.ledger import Ledger
from experiments.store.records import ResolvedConfig

from .backends import BACKENDS
from .estimate import estimate_iteration, plan_time, run_seconds
from .observe import observe
from .state import Observation, State, count_states

_ROWS = 60


def render_plan(
    ledger: Ledger,
    loaded: LoadedSweep,
    resolved: Sequence[ResolvedRun],
    name: str,
    cluster: Cluster,
) -> str:
    """Describe the runs of a sweep: which of them exist, and what the rest would cost."""
    seen, remark = observe(ledger, [each.id for each in resolved])
    missing = [each for each in resolved if seen[each.id].state is State.MISSING]
    ranks = loaded.sweep.resources.ranks
    unit = "GPU" if cluster.gpus_per_node else "rank"
    lines = [
        f"{loaded.name}  ({loaded.path})",
        loaded.sweep.question,
        "",
        f"{len(resolved)} runs, {ranks} {unit}{'s' if ranks > 1 else ''} each: "
        + count_states(each.state for each in seen.values()),
        "",
        _table(loaded.baseline, resolved, seen),
        "",
    ]
    given = loaded.sweep.resources.seconds_per_iteration
    estimate = estimate_iteration(given, [each.progress for each in seen.values()])
    if missing:
        lines.append(f"To submit: {len(missing)} on {name}, {cluster.max_parallel} at a time")
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


def _table(baseline: str, resolved: Sequence[ResolvedRun], seen: dict[str, Observation]) -> str:
    base = next(each for each in resolved if each.run.row == baseline)
    rows = [
        [each.run.name, each.id, seen[each.id].state.value,
         "(baseline)" if each.run.row == baseline else _difference(base.config, each.config)]
        for each in resolved[:_ROWS]
    ]  # fmt: skip
    columns = ["run", "id", "state", "differs from the baseline in"]
    rest = len(resolved) - _ROWS
    more = f"\n... and {rest} more" if rest > 0 else ""
    return tabulate(rows, columns, disable_numparse=True) + more


def _difference(base: ResolvedConfig, other: ResolvedConfig) -> str:
    found = [f"{key}={value}" for key, value in _differing(base.root, other.root)
             if key not in ("SEED", "OUTPUT_DIR")]  # fmt: skip
    shown = ", ".join(found[:4])
    return shown + (f", ... ({len(found)} keys)" if len(found) > 4 else "")


def _differing(base: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in other.items():
        if key in base and base[key] == value:
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from _differing(base[key], value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
