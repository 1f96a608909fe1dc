"""Records of runs and submissions: plain folders and JSON, readable without this tool.

::

    runs/
      all/<id>/            one folder per run, whichever sweeps ask for it; Detectron2's OUTPUT_DIR
        run.json           RunRecord: resolved config, ranks, names; written once
        submission.json    Claim: the submission that may train it
        state.json         Progress: what the job itself says
        attempts/          AttemptRecord per start: code, packages, data, machine
        failures/          Failure of each rank of the last start
      submissions/<token>/ Submission: one call of sbatch or one process, with submitit's files
      sweeps/<name>/       SweepRecord (what it asked for last), links to its runs, reports
      code/<hash>/         the code as it was when something was submitted
      cache/               resolved configs; may be deleted
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from experiments.errors import ExperimentError, RecordError

from .record_files import locked, now, read_record, write_record
from .records import Claim, Progress, RunRecord, Submission, SweepRecord


class Ledger:
    """The records under one folder; the folders that its methods return may not exist."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.cache = self.root / "cache"
        self.code = self.root / "code"

    def lock(self) -> AbstractContextManager[None]:
        """Lock out other commands while runs are claimed and submitted."""
        return locked(self.root / ".lock")

    def run_folder(self, identity: str) -> Path:
        """Folder of a run."""
        return self.root / "all" / identity

    def submission_folder(self, token: str) -> Path:
        """Folder of a submission."""
        return self.root / "submissions" / token

    def sweep_folder(self, name: str) -> Path:
        """Folder of a sweep: its record and reports."""
        return self.root / "sweeps" / name

    def read_run(self, identity: str) -> RunRecord | None:
        """Read ``run.json``; None if the run was never submitted."""
        return read_record(self.run_folder(identity) / "run.json", RunRecord)

    def require_run(self, identity: str) -> RunRecord:
        """Read ``run.json``; an ExperimentError if the run was never submitted."""
        record = self.read_run(identity)
        if record is None:
            path = self.run_folder(identity) / "run.json"
            raise ExperimentError(f"{path} is missing; submit the run again")
        return record

    def read_claim(self, identity: str) -> Claim | None:
        """Read ``submission.json`` of a run."""
        return read_record(self.run_folder(identity) / "submission.json", Claim)

    def read_progress(self, identity: str) -> Progress | None:
        """Read ``state.json``; None if the run never started."""
        return read_record(self.run_folder(identity) / "state.json", Progress)

    def read_submission(self, token: str) -> Submission | None:
        """Read ``submission.json`` of a submission."""
        return read_record(self.submission_folder(token) / "submission.json", Submission)

    def write_submission(self, submission: Submission) -> None:
        """Write ``submission.json`` of a submission."""
        write_record(self.submission_folder(submission.token) / "submission.json", submission)

    def submissions(self) -> Iterable[Submission]:
        """Read all submissions but damaged ones, whose runs are shown as unreadable."""
        folder = self.root / "submissions"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with suppress(RecordError):
                submission = self.read_submission(path.name)
                if submission is not None:
                    yield submission

    def read_sweep(self, name: str) -> SweepRecord:
        """Read ``sweep.json``; an ExperimentError if the sweep was never submitted."""
        record = read_record(self.sweep_folder(name) / "sweep.json", SweepRecord)
        if record is None:
            folder = self.root / "sweeps"
            known = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
            raise ExperimentError(
                f"nothing was submitted of sweep {name!r} into {self.root} "
                f"(submitted there: {known or 'none'}). See what it would run: "
                f"python -m experiments plan {name}"
            )
        return record

    def write_sweep(self, sweep: SweepRecord, runs: Iterable[RunRecord]) -> None:
        """Record a sweep, its new runs, and links to them; existing runs keep their record."""
        folder = self.sweep_folder(sweep.sweep)
        for run in runs:
            path = self.run_folder(run.id) / "run.json"
            if not path.exists():
                write_record(path, run, durable=False)
        for entry in sweep.runs:
            link = folder / entry.name.replace("/", "_")
            with suppress(OSError):  # links are for people; nothing reads them
                folder.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(self.run_folder(entry.id), folder))
        write_record(folder / "sweep.json", sweep)

    def claim(self, token: str, identities: Sequence[str]) -> None:
        """Give runs to a submission; jobs of an earlier one no longer train them."""
        for index, identity in enumerate(identities):
            claim = Claim(token=token, index=index, claimed=now())
            write_record(self.run_folder(identity) / "submission.json", claim)
