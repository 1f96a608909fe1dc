"""What the runs of a sweep left behind: results, config, data, starts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.jobs.observe import Observation, State, observe
from experiments.store.files import read_json
from experiments.store.ledger import Ledger


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        run: its entry in ``sweep.json``.
        seen: its state.
        record: ``run.json`` of a run of its row, without regard to the seed; empty where there is
            none.
        summary: ``summary.json`` of a finished run, else empty.
        data: data set -> size and SHA-256 of its annotations, of a finished run's last start.
    """

    run: dict[str, Any]
    seen: Observation
    record: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as ``k=4,seed=1``."""
        return self.run["name"]

    @property
    def starts(self) -> int:
        """How often it was started."""
        return len(self.seen.progress.get("attempts", []))

    @property
    def requeues(self) -> int:
        """How many of its starts were not submitted: its job was started again."""
        attempts = self.seen.progress.get("attempts", [])
        return len(attempts) - len({attempt.get("token") for attempt in attempts})

    def figure(self, *path: str) -> Any:
        """What the summary says, by its nested keys; None where it says nothing."""
        value: Any = self.summary
        try:
            for key in path:
                value = value[key]
        except (KeyError, TypeError):  # absent, or null where there would be more of it
            return None
        return value

    @property
    def memory(self) -> float | None:
        """Highest memory of training in MiB: allocated on a GPU, else of the process."""
        allocated = self.figure("peak_memory_mib", "allocated")
        return self.figure("peak_memory_mib", "process") if allocated is None else allocated

    @property
    def evaluation_memory(self) -> float | None:
        """The same of evaluations."""
        allocated = self.figure("evaluation", "peak_memory_mib", "allocated")
        process = self.figure("evaluation", "peak_memory_mib", "process")
        return process if allocated is None else allocated


def read_outcomes(ledger: Ledger, sweep: dict[str, Any]) -> tuple[list[Outcome], str]:
    """The runs of a sweep as they are now; and a remark where SLURM could not be asked."""
    seen, remark = observe(ledger, [run["id"] for run in sweep["runs"]])
    records: dict[str, dict[str, Any]] = {}
    outcomes = []
    for run in sweep["runs"]:
        folder = ledger.run_folder(run["id"])
        try:
            # Runs of a row differ in the seed alone: one record tells the config of all.
            record = records.get(run["row"]) or ledger.read_run(run["id"]) or {}
            records[run["row"]] = record
            outcome = Outcome(run, seen[run["id"]], record)
            if outcome.seen.state is State.FINISHED:
                if not record:
                    raise RecordError(f"{folder / 'run.json'} is missing")
                summary = _read_summary(folder / "summary.json")
                outcome = replace(outcome, summary=summary, data=_read_data(folder, outcome.starts))
        except RecordError as error:
            outcome = Outcome(run, Observation(State.UNREADABLE, str(error)))
        outcomes.append(outcome)
    return outcomes, remark


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {error}") from error
    if not isinstance(summary, dict):
        raise RecordError(f"{path}: expected an object, got {type(summary).__name__}")
    return summary


def _read_data(folder: Path, start: int) -> dict[str, Any]:
    """What a start noted of its data."""
    return (read_json(folder / "attempts" / f"{start}.json") or {}).get("data", {})


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        name: such as ``k=4``.
        outcomes: the runs.
    """

    name: str
    outcomes: list[Outcome]

    @property
    def record(self) -> dict[str, Any]:
        """``run.json`` of one of them; empty where none can be read."""
        return next((outcome.record for outcome in self.outcomes if outcome.record), {})

    @property
    def finished(self) -> list[Outcome]:
        """The runs with results."""
        return [outcome for outcome in self.outcomes if outcome.summary]

    def by_seed(self, *path: str) -> dict[int, float]:
        """Seed -> a figure of the summary, of the runs that have it."""
        found = ((o.run["seed"], o.figure(*path)) for o in self.finished)
        return {seed: value for seed, value in found if value is not None}


@dataclass(frozen=True)
class Comparison:
    """The rows of a sweep.

    Attributes:
        sweep: ``sweep.json``.
        outcomes: all runs, in its order.
        rows: the same by row.
    """

    sweep: dict[str, Any]
    outcomes: list[Outcome]
    rows: list[Row]

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.name == self.sweep["baseline"])


def compare(sweep: dict[str, Any], outcomes: Sequence[Outcome]) -> Comparison:
    """Sort the runs of a sweep into rows."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.run["row"], []).append(outcome)
    return Comparison(sweep, list(outcomes), [Row(name, runs) for name, runs in rows.items()])


def median(values: Sequence[float | None]) -> float | None:
    """Median of those that are there; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
