"""Read the runs of a sweep: results, config, data, attempts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.jobs.observe import observe
from experiments.jobs.state import Observation, State
from experiments.store.ledger import Ledger
from experiments.store.record_files import read_record
from experiments.store.records import (
    AttemptRecord,
    DataFingerprint,
    RunRecord,
    Summary,
    SweepRecord,
    SweepRun,
)

from .statistics import Average, Difference, average, paired_difference


@dataclass(frozen=True)
class Outcome:
    """A run, its state and its results."""

    run: SweepRun
    seen: Observation
    record: RunRecord | None = None  # run.json of a run of its row, which differs in the seed
    summary: Summary | None = None  # of a finished run
    data: dict[str, DataFingerprint] = field(default_factory=dict)  # of its last attempt
    folder: Path | None = None  # with its files; None if they cannot be read

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def starts(self) -> int:
        """Number of starts."""
        return len(self.seen.progress.attempts)

    @property
    def requeues(self) -> int:
        """Number of starts that were not submitted, but requeued."""
        attempts = self.seen.progress.attempts
        return len(attempts) - len({attempt.token for attempt in attempts})

    def figure(self, path: str) -> Any:
        """Return a figure of the summary by its dotted name; None if it is absent."""
        return None if self.summary is None else self.summary.figure(path)

    @property
    def memory(self) -> float | None:
        """Highest memory of training in MiB: allocated on a GPU, else of the process."""
        return self._highest("peak_memory_mib")

    @property
    def evaluation_memory(self) -> float | None:
        """The same of evaluations."""
        return self._highest("evaluation.peak_memory_mib")

    def _highest(self, path: str) -> float | None:
        peaks: dict[str, float] = self.figure(path) or {}
        return peaks.get("allocated", peaks.get("process"))


def read_outcomes(ledger: Ledger, sweep: SweepRecord) -> tuple[list[Outcome], str]:
    """Return the runs of a sweep in its order, and a remark if a cluster could not be asked."""
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
    """Runs that differ in their seed alone, under a name such as ``k=4``."""

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

    def differ_from(self, baseline: Row, path: str) -> Difference | None:
        """Return the difference of a figure over the seeds with which both saw the same samples."""
        theirs = {run.run.seed: run.figure("stream") for run in baseline.finished}
        own = {run.run.seed: run.figure("stream") for run in self.finished}
        paired = {seed for seed, word in own.items() if word and word == theirs.get(seed)}
        values = {seed: value for seed, value in self.by_seed(path).items() if seed in paired}
        return paired_difference(values, baseline.by_seed(path))

    def average(self, path: str) -> Average | None:
        """Return a figure of the summary over the seeds; None if no run has it."""
        return average(list(self.by_seed(path).values()))

    def median(self, read: Callable[[Outcome], float | None]) -> float | None:
        """Return the median of a figure over the runs that have it; None if none has."""
        known = [value for run in self.finished if (value := read(run)) is not None]
        return statistics.median(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """The runs of a sweep in its order, and the same by row."""

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
