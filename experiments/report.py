"""The comparison of a sweep's runs: Markdown, CSV and plots, from the files of the runs alone."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .files import now, write_text
from .ledger import Ledger
from .states import Observation, State, observe

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Outcome:
    """One run of a row.

    Attributes:
        run: its entry in ``sweep.json``.
        seen: its state.
        summary: ``summary.json`` of a finished run, else empty.
    """

    run: dict[str, Any]
    seen: Observation
    summary: dict[str, Any]

    def metric(self, name: str) -> float | None:
        """A COCO metric in percent; None where the run has none."""
        return self.summary.get("results", {}).get("bbox", {}).get(name)


def read_outcomes(ledger: Ledger, sweep: dict[str, Any]) -> tuple[list[Outcome], str]:
    """The runs of a sweep with their results; and a remark where SLURM could not be asked."""
    seen, remark = observe(ledger, [run["id"] for run in sweep["runs"]])
    outcomes = []
    for run in sweep["runs"]:
        observation = seen[run["id"]]
        summary: dict[str, Any] = {}
        if observation.state is State.FINISHED:
            path = ledger.run_folder(run["id"]) / "summary.json"
            try:
                summary = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                observation = Observation(State.UNREADABLE, f"{path}: {error}")
        outcomes.append(Outcome(run, observation, summary))
    return outcomes, remark


def write_report(ledger: Ledger, name: str, *, plots: bool = True) -> tuple[str, list[Path]]:
    """Write ``report.md``, ``report.csv`` and ``report.png`` into the sweep's folder.

    Args:
        ledger: of the runs.
        name: of the sweep, as it was submitted.
        plots: draw them; nothing is drawn while no run has a result.

    Returns:
        The Markdown text, and the files written.

    Raises:
        ExperimentError: nothing of the sweep was submitted, or the folder cannot be written.
    """
    sweep = ledger.read_sweep(name)
    outcomes, remark = read_outcomes(ledger, sweep)
    rows = _group(outcomes)
    text = _markdown(sweep, rows, outcomes)
    if remark:
        text += f"\n{remark}\n"
    folder = ledger.sweep_folder(name)
    files = [folder / "report.md", folder / "report.csv"]
    write_text(files[0], text)
    write_text(files[1], _csv(outcomes))
    if plots and any(outcome.summary for outcome in outcomes):
        from .plots import draw_comparison

        files.append(draw_comparison(sweep, rows, folder / "report.png"))
    return text, files


def _group(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Row -> its runs, one per seed."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.run["row"], []).append(outcome)
    return rows


def mean_metric(row: Sequence[Outcome], name: str) -> tuple[float, float | None, int] | None:
    """Mean, standard deviation (None of one run) and number of the runs that have a metric."""
    values = [value for outcome in row if (value := outcome.metric(name)) is not None]
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.mean(values), deviation, len(values)


def _markdown(
    sweep: dict[str, Any], rows: dict[str, list[Outcome]], outcomes: Sequence[Outcome]
) -> str:
    baseline = sweep["baseline"]
    base = mean_metric(rows[baseline], "AP")
    by_axis = all("run" not in row[0].run["cells"] for row in rows.values())
    table = []
    for name, row in rows.items():
        line = dict(row[0].run["cells"]) if by_axis else {"run": name}
        for metric in METRICS:
            line[metric] = _cell(mean_metric(row, metric))
        own = mean_metric(row, "AP")
        difference = "" if own is None or base is None else f"{own[0] - base[0]:+.1f}"
        line["vs baseline"] = "baseline" if name == baseline else difference
        line["s/iter"] = _typical(row, lambda s: s["median_seconds_per_iteration"], "{:.3f}")
        line["MiB"] = _typical(row, _memory, "{:.0f}")
        line["state"] = _states(row)
        table.append(line)
    # Columns of one width would make every line of a diff change with one cell.
    body = tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True)
    lines = [
        f"# {sweep['sweep']}",
        "",
        sweep["question"],
        "",
        body,
        "",
        "AP is COCO's, in percent, on the last weights; of several seeds the mean, ± their "
        "standard deviation. s/iter is the median over a run, MiB the highest memory of the main "
        "rank (allocated on a GPU, else resident): both hold for the machine and its load at "
        "the time.",
        "",
        *_footer(sweep, outcomes),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: tuple[float, float | None, int] | None) -> str:
    if value is None:
        return "—"
    mean, deviation, _ = value
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _memory(summary: dict[str, Any]) -> float:
    peak = summary["peak_memory_mib"]
    return peak.get("allocated", peak["process"])


def _typical(row: Sequence[Outcome], value: Any, form: str) -> str:
    values = [value(outcome.summary) for outcome in row if outcome.summary]
    values = [each for each in values if each is not None]
    return form.format(statistics.median(values)) if values else "—"


def _states(row: Sequence[Outcome]) -> str:
    finished = sum(outcome.seen.state is State.FINISHED for outcome in row)
    others = [
        f"seed {outcome.run['seed']} {outcome.seen.state.value}"
        if len(row) > 1
        else outcome.seen.state.value
        for outcome in row
        if outcome.seen.state is not State.FINISHED
    ]
    if not others:
        return "finished" if len(row) == 1 else f"{finished} finished"
    return ", ".join([*([f"{finished} finished"] if finished else []), *others])


def _footer(sweep: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader needs to trace the figures."""
    done = [outcome for outcome in outcomes if outcome.summary]

    def values(get: Any) -> str:
        found = list(dict.fromkeys(str(get(outcome.summary)) for outcome in done))
        return "; ".join(found) or "—"

    versions = ("python", "detectron2", "torch", "torchvision", "pycocotools")
    starts = [len(outcome.seen.progress.get("attempts", [])) for outcome in done]
    missing = [outcome.run["name"] for outcome in outcomes if not outcome.summary]
    lines = [
        f"- {len(done)} of {len(outcomes)} runs have results"
        + (f"; without: {', '.join(missing[:20])}" if missing else "")
        + ("..." if len(missing) > 20 else ""),
        f"- Commit: {values(lambda s: s['commit'])}",
        "- Versions: "
        + values(lambda s: ", ".join(f"{name} {s['versions'].get(name)}" for name in versions)),
        "- Hardware: "
        + values(lambda s: ", ".join(s["hardware"]["gpus"]) or s["hardware"]["cpu"])
        + f"; {sweep['ranks']} rank{'s' if sweep['ranks'] > 1 else ''} a run",
        f"- Seeds: {', '.join(map(str, sorted({run['seed'] for run in sweep['runs']})))}",
    ]
    restarted = [f"{o.run['name']} {n}" for o, n in zip(done, starts, strict=True) if n > 1]
    if restarted:
        lines.append(f"- Started more than once: {', '.join(restarted[:20])}")
    if len(outcomes) <= 40:
        ids = ", ".join(f"{outcome.run['name']} `{outcome.run['id']}`" for outcome in outcomes)
        lines.append(f"- Run folders (hash of the config): {ids}")
    lines.append(f"- Written {now()} by `python -m experiments report {sweep['sweep']}`")
    return lines


def _csv(outcomes: Sequence[Outcome]) -> str:
    """One line per run, every figure in full."""
    axes = list(dict.fromkeys(axis for o in outcomes for axis in o.run["cells"]))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measures = ("seconds_per_iteration", "memory_mib", "iterations", "commit")
    writer.writerow(["id", "name", *axes, "seed", "state", *METRICS, *measures])
    for outcome in outcomes:
        run, summary = outcome.run, outcome.summary
        figures = [outcome.metric(name) for name in METRICS]
        measured: list[Any] = [None] * 4
        if summary:
            measured = [
                summary["median_seconds_per_iteration"],
                _memory(summary),
                summary["iterations"],
                summary["commit"],
            ]
        cells = [run["cells"].get(axis, "") for axis in axes]
        state = outcome.seen.state.value
        writer.writerow([run["id"], run["name"], *cells, run["seed"], state, *figures, *measured])
    return stream.getvalue()
