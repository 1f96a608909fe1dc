"""What the runs of a sweep left behind: results, config, data, attempts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.jobs.observe import observe
from experiments.jobs.state import Observation, State
from experiments.store.files import read_record
from experiments.store.ledger import Ledger
from experiments.store.records import (
    AttemptRecord,
    DataFingerprint,
    RunRecord,
    Summary,
    SweepRecord,
    SweepRun,
)


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        run: its entry in ``sweep.json``.
        seen: its state.
        record: ``run.json`` of a run of its row, without regard to the seed; None if there is none.
        summary: of a finished run, else None.
        data: data set -> fingerprint of its annotations, of a finished run's last attempt.
        folder: with the run's files; None if they cannot be read.
    """

    run: SweepRun
    seen: Observation
    record: RunRecord | None = None
    summary: Summary | None = None
    data: dict[str, DataFingerprint] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Such as ``k=4,seed=1``."""
        return self.run.name

    @property
    def starts(self) -> int:
        """How often it was started."""
        return len(self.seen.progress.attempts)

    @property
    def requeues(self) -> int:
        """How many of its starts were not submitted: its job was started again."""
        attempts = self.seen.progress.attempts
        return len(attempts) - len({attempt.token for attempt in attempts})

    def figure(self, path: str) -> Any:
        """Return what the summary says, by a dotted name; None if it says nothing."""
        return None if self.summary is None else self.summary.figure(path)

    @property
    def memory(self) -> float | None:
        """Highest memory of training in MiB: allocated on a GPU, else of the process."""
        allocated: float | None = self.figure("peak_memory_mib.allocated")
        return self.figure("peak_memory_mib.process") if allocated is None else allocated

    @property
    def evaluation_memory(self) -> float | None:
        """The same of evaluations."""
        allocated: float | None = self.figure("evaluation.peak_memory_mib.allocated")
        process: float | None = self.figure("evaluation.peak_memory_mib.process")
        return process if allocated is None else allocated


def read_outcomes(ledger: Ledger, sweep: SweepRecord) -> tuple[list[Outcome], str]:
    """Read the runs of a sweep as they are now.

    Returns:
        The runs, in the order of the sweep; and a remark if a cluster could not be asked.
    """
    seen, remark = observe(ledger, [run.id for run in sweep.runs])
    records: dict[str, RunRecord | None] = {}
    outcomes = []
    for run in sweep.runs:
        folder = ledger.run_folder(run.id)
        try:
            # Runs of a row differ in the seed alone: one record tells the config of all.
            record = records[run.row] = records.get(run.row) or ledger.read_run(run.id)
            outcome = Outcome(run, seen[run.id], record, folder=folder)
            if outcome.seen.state is State.FINISHED:
                summary = read_record(folder / "summary.json", Summary)
                for name, part in (("run.json", record), ("summary.json", summary)):
                    if part is None:
                        raise RecordError(f"{folder / name} is missing")
                last = read_record(folder / "attempts" / f"{outcome.starts}.json", AttemptRecord)
                data = {} if last is None else last.data
                outcome = replace(outcome, summary=summary, data=data)
        except RecordError as error:
            outcome = Outcome(run, Observation(State.UNREADABLE, str(error)))
        outcomes.append(outcome)
    return outcomes, remark


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
    def record(self) -> RunRecord | None:
        """``run.json`` of one of them; None if none can be read."""
        return next((outcome.record for outcome in self.outcomes if outcome.record), None)

    @property
    def finished(self) -> list[Outcome]:
        """The runs with results."""
        return [outcome for outcome in self.outcomes if outcome.summary]

    def by_seed(self, path: str) -> dict[int, float]:
        """Return seed -> a figure of the summary, of the runs that have it."""
        found = ((outcome.run.seed, outcome.figure(path)) for outcome in self.finished)
        return {seed: value for seed, value in found if value is not None}


@dataclass(frozen=True)
class Comparison:
    """The rows of a sweep.

    Attributes:
        sweep: ``sweep.json``.
        outcomes: all runs, in its order.
        rows: the same by row.
    """

    sweep: SweepRecord
    outcomes: list[Outcome]
    rows: list[Row]

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.name == self.sweep.baseline)


def compare(sweep: SweepRecord, outcomes: Sequence[Outcome]) -> Comparison:
    """Sort the runs of a sweep into rows."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.run.row, []).append(outcome)
    return Comparison(sweep, list(outcomes), [Row(name, runs) for name, runs in rows.items()])


def median(values: Sequence[float | None]) -> float | None:
    """Median of those that are there; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
