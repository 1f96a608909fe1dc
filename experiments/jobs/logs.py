"""The logs of a run: Detectron2's, and what its job printed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from experiments.store.ledger import Ledger
from experiments.store.records import Claim, Submission


def log_files(ledger: Ledger, identity: str, *, job: bool) -> list[Path]:
    """List the existing log files of a run: Detectron2's, or with ``job`` those of its job."""
    claim = ledger.read_claim(identity)
    own = [ledger.run_folder(identity) / "log.txt"]
    printed: list[Path] = []
    if claim is not None and (submission := ledger.read_submission(claim.token)) is not None:
        printed = job_files(ledger, claim, submission)
    found = [path for path in (printed if job else own) if path.is_file()]
    # Before Detectron2 has a log, what the job printed is all there is.
    return found or [path for path in printed if path.is_file()]


def job_files(ledger: Ledger, claim: Claim, submission: Submission) -> list[Path]:
    """List what the job of a run printed: a file for each rank, of stdout and of stderr."""
    folder = ledger.submission_folder(claim.token) / "jobs"
    return sorted(folder.glob(f"{submission.task_id(claim.index)}_[0-9]*_log.*"))


def last_error_line(files: Iterable[Path]) -> str:
    """Return the last line about an error that a job printed to stderr; else its last line."""
    for path in files:
        if path.suffix != ".err":
            continue
        try:
            lines = tail(path, 20).splitlines()
        except OSError:
            continue
        errors = [line for line in lines if "error" in line.lower()] or lines
        if errors:
            return errors[-1].strip()[:300]
    return ""


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a file."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 400 * lines))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
