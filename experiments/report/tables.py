"""The content of a report: its tables and the text around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

from experiments.store.record_files import now
from experiments.store.records import ERRORS, METRICS, SHARES, SIZES

from .fairness import Knob, describe_data, shorten, unequal_knobs
from .outcomes import Comparison, Outcome, Row
from .page import Block, Document, Heading, Items, Picture, Table, Text

_NONE = "—"
_LISTED_RUNS = 40  # report.csv has them all
_LISTED_NAMES = 20
_NAMED_ROWS = 3  # with a value of a key, beyond which they are counted
_KNOB_COLUMNS = 8  # rows beyond which they do not fit side by side

_RESULTS = (
    "AP is COCO's, in percent, on the last weights: mean over seeds ± standard deviation. "
    "vs baseline is the mean difference in AP, with its 95 % interval by Student's t, over the n "
    "seeds with which both saw the same samples in the same order; 'not paired' where there is no "
    "such seed. images/s and s/iter (medians) and MiB "
    "(highest; allocated on a GPU, else resident) are of training; eval s is the time of an "
    "evaluation. They hold for the machine and its load at the time."
)
_ERRORS = (
    "AP50 gained by fixing all errors of one type, mean over seeds (in brackets: the mean "
    "difference to the baseline, over the seeds with which both saw the same samples)."
)
_MATCHING = (
    "Positive anchors of an object, all and by COCO's sizes in the network's input; shares in "
    "percent of all anchors that are positive and ignored, and of the positive ones that several "
    "objects claim. Means over training and seeds."
)
_KNOBS = (
    "Config keys in which the rows differ: those that the sweep sets are its question; the others "
    f"may explain a difference in AP as well. {_NONE} is a key that the row's model does not read."
)
_PICTURES = {
    "ap_by_size": "AP by object size",
    "ap_over_iterations": "AP over iterations",
    "ap_against_memory": "AP against memory",
    "ap_against_speed": "AP against speed",
    "error_types": "Error types",
    "positives_per_object": "Positive anchors of an object",
}


def compose(
    comparison: Comparison, mixes: Sequence[str], drawn: Mapping[str, Path] | None, remark: str
) -> Document:
    """Return a report, with the findings of ``find_mixes``.

    Args:
        drawn: name -> picture in ``plots/``; None if no plots were asked for.
        remark: why the states may be out of date; may be empty.
    """
    blocks: list[Block] = [Text(comparison.sweep.question)]
    if mixes:
        warning = Text("These runs were not trained and evaluated alike:", warning=True)
        blocks += [warning, Items(list(mixes))]
    blocks += [results_table(comparison), Text(_RESULTS)]
    if drawn is not None:
        blocks += _overview(comparison, drawn)
    blocks += [Heading("Error types"), *_errors(comparison)]
    blocks += _pictures(drawn or {}, "error_types")
    blocks += [Heading("Positive anchors"), *_matching(comparison)]
    blocks += _pictures(drawn or {}, "positives_per_object")
    blocks += [Heading("Unequal knobs"), *_knobs(comparison)]
    blocks += [Heading("Runs"), *_runs(comparison)]
    if remark:
        blocks.append(Text(remark))
    return Document(comparison.sweep.sweep, blocks)


def results_table(comparison: Comparison) -> Table:
    """Return the table of AP and cost, a line for each row."""
    figure = partial(methodcaller, "figure")

    def versus(row: Row) -> str:
        if row is comparison.baseline:
            return "baseline"
        ap, base = "results.bbox.AP", comparison.baseline
        found = row.differ_from(base, ap)
        if found is None:
            own, theirs = row.average(ap), base.average(ap)
            if own is None or theirs is None:
                return _NONE
            return f"{own.mean - theirs.mean:+.1f}, not paired"
        interval = ""
        if found.half_width is not None:
            low, high = found.mean - found.half_width, found.mean + found.half_width
            interval = f" [{low:+.1f}, {high:+.1f}]"
        return f"{found.mean:+.1f}{interval}, n={found.count}"

    def cost(form: str, read: Callable[[Outcome], float | None], row: Row) -> str:
        value = row.median(read)
        return _NONE if value is None else form.format(value)

    return _table(
        comparison,
        {
            **{name: partial(_mean, f"results.bbox.{name}") for name in METRICS},
            "vs baseline": versus,
            "images/s": partial(cost, "{:.1f}", figure("images_per_second")),
            "s/iter": partial(cost, "{:.3f}", figure("median_seconds_per_iteration")),
            "MiB": partial(cost, "{:.0f}", attrgetter("memory")),
            "eval s": partial(cost, "{:.1f}", figure("evaluation.seconds")),
            "runs": _states,
        },
    )


def _errors(comparison: Comparison) -> list[Block]:
    def cell(name: str, row: Row) -> str:
        path = f"results.errors.{name}"
        difference = row.differ_from(comparison.baseline, path)
        if difference is None or row is comparison.baseline:
            return _mean(path, row)
        return f"{_mean(path, row)} ({difference.mean:+.1f})"

    if not any(run.figure("results.errors") for run in comparison.outcomes):
        return [Text("No run has measured its error types (see `docs/measurements.md`).")]
    return [_table(comparison, {name: partial(cell, name) for name in ERRORS}), Text(_ERRORS)]


def _matching(comparison: Comparison) -> list[Block]:
    def percent(name: str, row: Row) -> str:
        found = row.average(f"matching.{name}_anchor_share")
        return _NONE if found is None else f"{100 * found.mean:.2f}"

    if not any(run.figure("matching") for run in comparison.outcomes):
        return [Text("No run has measured its matches (see `docs/measurements.md`).")]
    columns: dict[str, Callable[[Row], str]] = {
        size.strip("_") or "all": partial(_mean, f"matching.positives_per_gt{size}")
        for size in SIZES
    }
    columns |= {f"{name} %": partial(percent, name) for name in SHARES}
    return [_table(comparison, columns), Text(_MATCHING)]


def _knobs(comparison: Comparison) -> list[Block]:
    different, some = unequal_knobs(comparison.rows)
    if not different and not some:
        return [Text("No config key differs between the rows.")]
    blocks: list[Block] = [Text(_KNOBS)]
    names = [row.name for row in comparison.rows]
    wide = len(names) <= _KNOB_COLUMNS
    columns = ["key", "", *(names if wide else ["values (rows)"])]
    lines = []
    for knob in different:
        role = "question" if knob.asked else "also differs"
        values = [knob.values.get(name, _NONE) for name in names] if wide else [_group_values(knob)]
        lines.append([knob.key, role, *values])
    if different:
        blocks.append(Table(columns, lines, labels=len(columns)))
    if some:
        blocks.append(Text("Read by some of the models only, and not at their default:"))
        blocks.append(Items(_list_partial(some)))
    return blocks


def _group_values(knob: Knob) -> str:
    """Return each value with its rows, the most frequent value first."""
    groups: dict[str, list[str]] = {}
    for row, value in knob.values.items():
        groups.setdefault(value, []).append(row)
    shown = sorted(groups.items(), key=lambda group: -len(group[1]))[:_LISTED_NAMES]
    texts = [
        f"{value} ({', '.join(rows) if len(rows) <= _NAMED_ROWS else f'{len(rows)} rows'})"
        for value, rows in shown
    ]
    return "; ".join(texts) + ("; ..." if len(groups) > _LISTED_NAMES else "")


def _list_partial(knobs: Sequence[Knob]) -> list[str]:
    """Return a line for each group of rows."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for knob in knobs:
        value = next(iter(knob.values.values()))
        groups.setdefault(tuple(knob.values), []).append(f"`{knob.key}` {value}")
    return [f"{shorten(rows, _LISTED_NAMES)}: {', '.join(keys)}" for rows, keys in groups.items()]


def _runs(comparison: Comparison) -> list[Block]:
    """List versions, hardware, data and all runs, to trace the figures."""
    runs = comparison.outcomes
    done = [run for run in runs if run.summary]

    def values(read: Callable[[Outcome], Any]) -> str:
        return "; ".join(dict.fromkeys(str(read(run)) for run in done)) or _NONE

    def versions(run: Outcome) -> str:
        return ", ".join(f"{name} {value}" for name, value in run.figure("versions").items())

    def hardware(run: Outcome) -> str:
        gpus = Counter(run.figure("hardware.gpus"))
        return ", ".join(f"{n} x {gpu}" for gpu, n in gpus.items()) or run.figure("hardware.cpu")

    missing = [run.name for run in runs if not run.summary]
    restarted = [
        f"{run.name} {run.starts}" + (f" ({run.requeues} requeued)" if run.requeues else "")
        for run in runs
        if run.starts > 1
    ]
    ranks = comparison.sweep.ranks
    items = [
        f"{len(done)} of {len(runs)} runs have results"
        + (f"; without: {shorten(missing, _LISTED_NAMES)}" if missing else ""),
        f"Commit: {values(lambda run: run.figure('commit'))}",
        f"Versions: {values(versions)}",
        f"Hardware: {values(hardware)}; {ranks} rank{'s' if ranks > 1 else ''} a run",
        f"Evaluated on: {values(lambda run: describe_data(run, 'TEST'))}",
        f"Trained on: {values(lambda run: describe_data(run, 'TRAIN'))}",
        f"Seeds: {', '.join(map(str, sorted({run.run.seed for run in runs})))}",
    ]
    if restarted:
        items.append(f"Started more than once: {shorten(restarted, _LISTED_NAMES)}")
    if done and (command := done[0].figure("command")):
        items.append(f"{done[0].name} without a sweep: `{command}`; the others: `report.csv`")
    items.append(f"Written {now()} by `python -m experiments report {comparison.sweep.sweep}`")
    if len(runs) > _LISTED_RUNS:
        return [Text(f"More than {_LISTED_RUNS}: `report.csv` lists them."), Items(items)]
    columns = ["run", "hash of the config", "state", "starts", "requeues", "started", "AP"]
    return [Table(columns, [_line(run) for run in runs], labels=3), Items(items)]


def _line(run: Outcome) -> list[str]:
    state = ": ".join(filter(None, [run.seen.state.value, run.seen.reason]))
    ap = run.figure("results.bbox.AP")
    return [
        run.name, f"`{run.run.id}`", state, str(run.starts), str(run.requeues),
        run.figure("started") or _NONE, _NONE if ap is None else f"{ap:.2f}",
    ]  # fmt: skip


def _overview(comparison: Comparison, drawn: Mapping[str, Path]) -> list[Block]:
    """Return the pictures of AP, and name those that are missing."""
    from .plots import MAX_ROWS

    names = ("ap_by_size", "ap_over_iterations", "ap_against_memory", "ap_against_speed")
    blocks = _pictures(drawn, *names)
    missing = [_PICTURES[name] for name in names if name not in drawn]
    if missing:
        blocks.append(Text(f"Not drawn, as no run has measured it: {', '.join(missing)}."))
    if len(comparison.rows) > MAX_ROWS:
        shown = f"{MAX_ROWS} of {len(comparison.rows)} rows"
        blocks.append(Text(f"Pictures show {shown}: the baseline, and those with the highest AP."))
    return blocks


def _pictures(drawn: Mapping[str, Path], *names: str) -> list[Block]:
    return [
        Picture(Path("plots", drawn[name].name), _PICTURES[name]) for name in names if name in drawn
    ]


def _table(comparison: Comparison, columns: Mapping[str, Callable[[Row], str]]) -> Table:
    """Return a line for each row; it begins with the row's cells or name."""
    cells = [row.outcomes[0].run.cells for row in comparison.rows]
    axes = ["run"] if any("run" in each for each in cells) else list(cells[0])
    lines = []
    for row, own in zip(comparison.rows, cells, strict=True):
        labels = [row.name] if axes == ["run"] else [own[axis] for axis in axes]
        lines.append([*labels, *(cell(row) for cell in columns.values())])
    marked = comparison.rows.index(comparison.baseline)
    return Table([*axes, *columns], lines, labels=len(axes), marked=marked)


def _mean(path: str, row: Row) -> str:
    found = row.average(path)
    if found is None:
        return _NONE
    text = f"{found.mean:.1f}"
    if found.deviation is not None:
        text += f" ± {found.deviation:.1f}"
    finished = len(row.finished)
    return text if found.count == finished else f"{text} ({found.count} of {finished})"


def _states(row: Row) -> str:
    """Return how many runs of a row have results, and the states of the others."""
    if len(row.outcomes) == 1:
        return row.outcomes[0].seen.state.value
    seeds: dict[str, list[str]] = {}
    for run in row.outcomes:
        if not run.summary:
            seeds.setdefault(run.seen.state.value, []).append(str(run.run.seed))
    if not seeds:
        return f"{len(row.outcomes)} seeds"
    others = ", ".join(
        f"seed{'s' if len(members) > 1 else ''} {', '.join(members)} {state}"
        for state, members in seeds.items()
    )
    return f"{len(row.finished)} of {len(row.outcomes)} seeds; {others}"
