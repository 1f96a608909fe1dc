"""Pictures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Outcome, mean_metric

_SIZES = ("AP", "APs", "APm", "APl")
_MANY = 24  # rows beyond which a picture says nothing


def draw_comparison(sweep: dict[str, Any], rows: dict[str, list[Outcome]], path: Path) -> Path:
    """Draw AP by object size, and AP over iterations, of a sweep's rows.

    Args:
        sweep: ``sweep.json``.
        rows: row -> its runs.
        path: a PNG file.

    Returns:
        ``path``.
    """
    scored = {name: row for name, row in rows.items() if mean_metric(row, "AP") is not None}
    best = sorted(scored, key=lambda name: -(mean_metric(scored[name], "AP") or (0.0,))[0])
    shown = [name for name in rows if name in best[:_MANY]]
    height = max(3.2, 1.4 + 0.5 * len(shown))
    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(12, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _draw_bars(left, shown, scored, sweep["baseline"])
        _draw_curves(right, shown, scored)
        figure.suptitle(f"{sweep['sweep']}: {sweep['question']}", fontsize=10, wrap=True)
        figure.savefig(path, dpi=120)
    return path


def _draw_bars(
    axes: Axes, shown: Sequence[str], rows: dict[str, list[Outcome]], baseline: str
) -> None:
    colors = matplotlib.colormaps["viridis"](
        [0.15 + 0.7 * i / (len(_SIZES) - 1) for i in range(len(_SIZES))]
    )
    for offset, (metric, color) in enumerate(zip(_SIZES, colors, strict=True)):
        for place, name in enumerate(shown):
            value = mean_metric(rows[name], metric)
            if value is None:
                continue
            y = place + 0.2 * (offset - 1.5)
            axes.barh(y, value[0], 0.18, color=color, xerr=value[1],
                      label=metric if place == 0 else None)  # fmt: skip
            axes.text(value[0], y, f" {value[0]:.1f}", va="center", fontsize=7)
    labels = [f"{name}\n(baseline)" if name == baseline else name for name in shown]
    axes.set_yticks(range(len(shown)), [label.replace(",", "\n") for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("percent, on the last weights")
    axes.legend(loc="lower right", frameon=False)


def _draw_curves(axes: Axes, shown: Sequence[str], rows: dict[str, list[Outcome]]) -> None:
    for index, name in enumerate(shown):
        for number, outcome in enumerate(rows[name]):
            points = outcome.seen.progress.get("evaluations", [])
            points = [(iteration, ap) for iteration, ap in points if ap is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3,
                          color=f"C{index % 10}", label=name if number == 0 else None)  # fmt: skip
    axes.set_xlabel("iterations")
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
