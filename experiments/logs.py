"""Where the logs of a run are."""

from __future__ import annotations

import os
from pathlib import Path

from .ledger import Ledger


def log_files(ledger: Ledger, identity: str, *, job: bool) -> list[Path]:
    """Log files of a run that exist.

    Args:
        ledger: of the runs.
        identity: the run.
        job: what its job printed, one file per rank and stream, instead of Detectron2's log.
    """
    claim = ledger.read_claim(identity)
    own = [ledger.run_folder(identity) / "log.txt"]
    printed: list[Path] = []
    if claim is not None:
        record = ledger.read_submission(claim["token"]) or {}
        folder = ledger.submission_folder(claim["token"]) / "jobs"
        task = f"_{claim['index']}" if len(record.get("runs", ())) > 1 else ""
        printed = sorted(folder.glob(f"{record.get('job_id')}{task}_*_log.*"))
    found = [path for path in (printed if job else own) if path.is_file()]
    # Before Detectron2 has a log, what the job printed is all there is.
    return found or [path for path in printed if path.is_file()]


def tail(path: Path, lines: int) -> str:
    """The last lines of a file."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 400 * lines))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
