"""The pictures of a report."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.errors import ExperimentError
from experiments.jobs.state import State
from experiments.store.records import ERRORS, SIZES
from yolof_d2.measure.metrics_file import read_metrics

from .outcomes import Comparison, Outcome, Row
from .statistics import Average, average

MAX_ROWS = 24  # beyond it a picture says nothing

_COLORS = ("#2b6cb0", "#d1682b", "#2f8f5b", "#b83a6b", "#7656b8", "#8a6d1d", "#1f8a9c", "#7a7f87")
_MARKERS = "osD"  # one for each turn of the colours
_BASELINE = ("*", "#111111")
_LINE_HEIGHT = 0.155  # inches of a line of text
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "text.parse_math": False,  # names of rows are not formulas
    "svg.hashsalt": "yolof_d2",  # the same picture has the same bytes
}

_Value = TypeVar("_Value")
_Reader = Callable[[Row], Average | None]


@dataclass(frozen=True)
class _Look:
    """How a row is drawn, in all pictures alike."""

    tick: str  # its name beside an axis, a line for each axis of the sweep
    label: str  # its name in a legend
    color: str
    marker: str


@dataclass(frozen=True)
class _Scene:
    """The rows that pictures show."""

    rows: list[Row]
    looks: dict[str, _Look]  # by the name of a row
    baseline: str  # name of its row
    curves: dict[str, list[tuple[int, float]]]  # run id -> iterations done and AP, where evaluated

    def evaluated(self, row: Row) -> list[Outcome]:
        """Return the runs of a row that have a curve."""
        return [outcome for outcome in row.outcomes if outcome.run.id in self.curves]


def draw_plots(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Draw each picture that has data, as PNG and SVG, and the overview ``report.png``.

    Of more than ``MAX_ROWS`` rows, the baseline and those with the highest AP are shown. The
    pictures replace those in the sweep's ``folder``.

    Returns:
        Name -> PNG file.

    Raises:
        ExperimentError: the files cannot be written.
    """
    scene = _set_scene(comparison.rows, comparison.baseline.name)
    plots = folder / "plots"
    drawn = {}
    try:
        for path in (folder / "report.png", *(plots / f"{name}.png" for name in PICTURES)):
            path.unlink(missing_ok=True)
            path.with_suffix(".svg").unlink(missing_ok=True)
        with matplotlib.rc_context(_STYLE):
            for name, draw in PICTURES.items():
                figure = draw(scene)
                if figure is not None:
                    plots.mkdir(parents=True, exist_ok=True)
                    drawn[name] = plots / f"{name}.png"
                    figure.savefig(drawn[name], dpi=150)
                    figure.set_layout_engine("none")  # stays as it is; to find it takes long
                    figure.savefig(plots / f"{name}.svg", transparent=True, metadata={"Date": None})
            sweep = comparison.sweep
            overview = _draw_overview(scene, f"{sweep.sweep}: {sweep.question}")
            if overview is not None:
                drawn["overview"] = folder / "report.png"
                overview.savefig(drawn["overview"], dpi=120)
    except OSError as error:
        raise ExperimentError(
            f"cannot write the pictures into {folder}: {error}. Expected a writable folder with "
            "space left; --no-plots writes the report without them"
        ) from error
    return drawn


def _set_scene(rows: Sequence[Row], baseline: str) -> _Scene:
    def rank(row: Row) -> tuple[bool, float]:
        found = row.average(_AP)
        return row.name != baseline, -found.mean if found else 1.0

    best = {row.name for row in sorted(rows, key=rank)[:MAX_ROWS]}
    shown = [row for row in rows if row.name in best]
    styles = itertools.product(_MARKERS, _COLORS)
    looks = {}
    for row in shown:
        cells = row.outcomes[0].run.cells
        parts = [row.name] if "run" in cells else [f"{axis}={cell}" for axis, cell in cells.items()]
        if row.name == baseline:
            parts[-1] += " (baseline)"
        marker, color = _BASELINE if row.name == baseline else next(styles)
        tick = "\n".join(line for part in parts for line in textwrap.wrap(part, 36))
        looks[row.name] = _Look(tick, textwrap.fill(", ".join(parts), 60), color, marker)
    outcomes = [outcome for row in shown for outcome in row.outcomes]
    curves = {outcome.run.id: curve for outcome in outcomes if (curve := _read_curve(outcome))}
    return _Scene(shown, looks, baseline, curves)


def _read_curve(outcome: Outcome) -> list[tuple[int, float]]:
    file = outcome.folder and outcome.folder / "metrics.json"
    if file and file.is_file():
        last = outcome.run.iterations  # the final evaluation is noted one iteration late
        records = [record for record in read_metrics(file) if "bbox/AP" in record]
        points: list[tuple[int, float | None]] = [
            (min(int(record["iteration"]) + 1, last), record["bbox/AP"]) for record in records
        ]
    else:
        points = outcome.seen.progress.evaluations
    return [(done, ap) for done, ap in points if ap is not None and not math.isnan(ap)]


def _size(texts: Sequence[str]) -> tuple[float, float]:
    """Return width and height in inches of labels below one another, all as high as the highest."""
    lines = [text.split("\n") for text in texts]
    width = 0.075 * max(len(line) for label in lines for line in label)
    return width, len(lines) * (max(map(len, lines)) * _LINE_HEIGHT + 0.08)


_over_seeds = partial(methodcaller, "average")
_AP = "results.bbox.AP"
_BY_SIZE = {name: _over_seeds(f"results.bbox.{name}") for name in ("AP", "APs", "APm", "APl")}


def _draw_bars(scene: _Scene, panels: Mapping[str, _Reader], title: str) -> Figure | None:
    """Draw a panel for each figure, and in it a bar for each row."""
    values = _read_panels(scene.rows, panels)
    rows = _rows_in(scene, values)
    if not rows:
        return None
    width, height = _size([scene.looks[row.name].tick for row in rows])
    size = (width + 0.5 + 1.5 * len(values), height + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    _fill_bars(figure, scene, rows, values)
    figure.suptitle(title, fontsize=10)
    return figure


def _read_panels(
    rows: Sequence[Row], panels: Mapping[str, Callable[[Row], _Value | None]]
) -> dict[str, dict[str, _Value]]:
    """Return panel -> row -> value, without panels that no row has a value for."""
    values = {
        name: {row.name: value for row in rows if (value := read(row)) is not None}
        for name, read in panels.items()
    }
    return {name: found for name, found in values.items() if found}


def _rows_in(scene: _Scene, values: dict[str, dict[str, Any]]) -> list[Row]:
    return [row for row in scene.rows if any(row.name in found for found in values.values())]


def _fill_bars(
    figure: Any, scene: _Scene, rows: Sequence[Row], values: dict[str, dict[str, Average]]
) -> None:
    panels = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, values.items(), strict=True):
        for place, row in enumerate(rows):
            if row.name not in found:
                continue
            value = found[row.name]
            deviation = value.deviation or 0.0
            color = scene.looks[row.name].color
            axes.barh(place, value.mean, 0.62, color=color, alpha=0.85)
            if deviation:
                axes.errorbar(value.mean, place, xerr=deviation, color="#555555", capsize=2, lw=1)
            axes.annotate(
                f"{value.mean:.1f}", (value.mean + deviation, place), (3, 0),
                textcoords="offset points", va="center", fontsize=8,
                bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6},
            )  # fmt: skip
        if scene.baseline in found:
            axes.axvline(found[scene.baseline].mean, color=_BASELINE[1], lw=0.8, ls=(0, (4, 3)))
        axes.set_title(name, fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    drawn = [value for found in values.values() for value in found.values()]
    highest = max(value.mean + (value.deviation or 0.0) for value in drawn)
    panels[0].set_xlim(0, 1.3 * highest or 1.0)  # the figure stands beside the bar
    panels[0].set_yticks(range(len(rows)), [scene.looks[row.name].tick for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)


def _draw_curves(scene: _Scene) -> Figure | None:
    rows = list(filter(scene.evaluated, scene.rows))
    if not rows:
        return None
    figure = _figure_with_legend(6.5, scene, rows)
    _fill_curves(figure.subplots(), scene)
    return figure


def _fill_curves(axes: Axes, scene: _Scene) -> None:
    unfinished = False
    for row in scene.rows:
        look = scene.looks[row.name]
        for outcome in scene.evaluated(row):
            finished = outcome.seen.state is State.FINISHED
            unfinished |= not finished
            iterations, values = zip(*scene.curves[outcome.run.id], strict=True)
            axes.plot(
                iterations, values, color=look.color, marker=look.marker,
                markersize=6 if look.marker == "*" else 3.5, lw=1,
                ls="-" if finished else (0, (2, 2)), clip_on=False,
                zorder=3 if row.name == scene.baseline else 2,
            )  # fmt: skip
    axes.set_xlabel("iterations" + (" (dotted: not finished)" if unfinished else ""))
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)


def _figure_with_legend(width: float, scene: _Scene, rows: Sequence[Row]) -> Figure:
    """Return a figure with ``width`` inches for axes, and a legend beside them.

    The legend begins with the highest AP, as the axes do.
    """

    def last(row: Row) -> float:
        found = average([scene.curves[run.run.id][-1][1] for run in scene.evaluated(row)])
        return found.mean if found else 0.0

    looks = [scene.looks[row.name] for row in sorted(rows, key=last, reverse=True)]
    label_width, height = _size([look.label for look in looks])
    size = (width + label_width + 0.6, max(3.8, height + 0.4))
    figure = Figure(figsize=size, layout="constrained")
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, label=look.label,
               markersize=8 if look.marker == "*" else 5)
        for look in looks
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _draw_trade_off(
    scene: _Scene, panels: dict[str, Callable[[Outcome], float | None]]
) -> Figure | None:
    """Draw a panel for each cost: AP over that cost, a point for each row."""
    quality = _read_panels(scene.rows, {"AP": _over_seeds(_AP)}).get("AP", {})
    costs = _read_panels(
        [row for row in scene.rows if row.name in quality],
        {name: methodcaller("median", read) for name, read in panels.items()},
    )
    rows = _rows_in(scene, costs)
    if not rows:
        return None
    figure = _figure_with_legend(4.2 * len(costs), scene, rows)
    panels_of = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels_of, costs.items(), strict=True):
        for row in rows:
            if row.name not in found:
                continue
            look, ap = scene.looks[row.name], quality[row.name]
            axes.errorbar(
                found[row.name], ap.mean, yerr=ap.deviation, color=look.color, marker=look.marker,
                markersize=12 if look.marker == "*" else 7, capsize=2, lw=1, alpha=0.9,
            )  # fmt: skip
        if scene.baseline in found:
            axes.axhline(quality[scene.baseline].mean, color=_BASELINE[1], lw=0.8, ls=(0, (4, 3)))
        axes.set_xlabel(name)
        axes.margins(0.15)
    panels_of[0].set_ylabel("AP")
    return figure


def _draw_overview(scene: _Scene, title: str) -> Figure | None:
    values = _read_panels(scene.rows, _BY_SIZE)
    rows = _rows_in(scene, values)
    if not rows:
        return None
    width, height = _size([scene.looks[row.name].tick for row in rows])
    bars = width + 0.5 + 1.15 * len(values)
    figure = Figure(figsize=(bars + 4.8, max(3.4, height + 1.0)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(bars, 4.8))[0]
    _fill_bars(left, scene, rows, values)
    _fill_curves(right.subplots(), scene)
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


PICTURES: dict[str, Callable[[_Scene], Figure | None]] = {
    "ap_by_size": partial(
        _draw_bars, panels=_BY_SIZE, title="AP by object size (percent, on the last weights)"
    ),
    "ap_over_iterations": _draw_curves,
    "ap_against_memory": partial(
        _draw_trade_off,
        panels={
            "peak memory of training (MiB)": attrgetter("memory"),
            "peak memory of evaluation (MiB)": attrgetter("evaluation_memory"),
        },
    ),
    "ap_against_speed": partial(
        _draw_trade_off,
        panels={
            "training (images/s)": methodcaller("figure", "images_per_second"),
            "evaluation, the model alone (images/s)": methodcaller(
                "figure", "evaluation.images_per_second"
            ),
        },
    ),
    "error_types": partial(
        _draw_bars,
        panels={name: _over_seeds(f"results.errors.{name}") for name in ERRORS},
        title="AP50 gained by fixing all errors of one type",
    ),
    "positives_per_object": partial(
        _draw_bars,
        panels={
            f"{size.strip('_') or 'all'} objects": _over_seeds(f"matching.positives_per_gt{size}")
            for size in SIZES
        },
        title="Positive anchors of an object (mean over training)",
    ),
}
