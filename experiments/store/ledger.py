"""Where runs live, and what was asked for: plain folders and JSON, readable without this tool.

::

    runs/
      all/<id>/            one folder per run, whichever sweeps ask for it; Detectron2's OUTPUT_DIR
        run.json           resolved config, ranks, names; written once
        submission.json    who may train it: one submission, and the place in it
        state.json         what the job itself says: state, iteration, AP so far, attempts
        attempts/          per start: code, packages, data, machine
        failures/          how each rank of the last start failed
      submissions/<token>/ one call of sbatch or one local process, with submitit's files
      sweeps/<name>/       sweep.json (what it asked for last), links to its runs, reports
      code/<hash>/         the code as it was when something was submitted
      cache/               resolved configs; may be deleted
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, RecordError

from .files import locked, now, read_json, write_json

if TYPE_CHECKING:  # they bring pydantic, which takes longer to import than a report to write
    from experiments.spec.resolve import ResolvedRun
    from experiments.spec.sweep import LoadedSweep


class Ledger:
    """The records under one folder."""

    def __init__(self, root: Path):
        self.root = root.absolute()

    @property
    def cache(self) -> Path:
        """Folder of resolved configs."""
        return self.root / "cache"

    @property
    def code(self) -> Path:
        """Folder of code snapshots."""
        return self.root / "code"

    def lock(self) -> AbstractContextManager[None]:
        """Held while runs are claimed and submitted, so that two commands never claim one run."""
        return locked(self.root / ".lock")

    def run_folder(self, identity: str) -> Path:
        """Folder of a run, made or not."""
        return self.root / "all" / identity

    def submission_folder(self, token: str) -> Path:
        """Folder of a submission, made or not."""
        return self.root / "submissions" / token

    def sweep_folder(self, name: str) -> Path:
        """Folder of a sweep, made or not."""
        return self.root / "sweeps" / name

    def read_run(self, identity: str) -> dict[str, Any] | None:
        """``run.json``; None where the run was never submitted."""
        return read_json(self.run_folder(identity) / "run.json")

    def read_claim(self, identity: str) -> dict[str, Any] | None:
        """``submission.json`` of a run."""
        return read_json(self.run_folder(identity) / "submission.json")

    def read_state(self, identity: str) -> dict[str, Any] | None:
        """``state.json``; None where the run never started."""
        return read_json(self.run_folder(identity) / "state.json")

    def read_submission(self, token: str) -> dict[str, Any] | None:
        """``submission.json`` of a submission."""
        return read_json(self.submission_folder(token) / "submission.json")

    def write_submission(self, record: dict[str, Any]) -> None:
        """Write ``submission.json`` of the submission that ``record["token"]`` names."""
        write_json(self.submission_folder(record["token"]) / "submission.json", record)

    def submissions(self) -> Iterable[dict[str, Any]]:
        """All submissions that can be read; the runs of the others are shown as unreadable."""
        folder = self.root / "submissions"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with suppress(RecordError):
                record = read_json(path / "submission.json")
                if record is not None:
                    yield record

    def read_sweep(self, name: str) -> dict[str, Any]:
        """What a sweep asked for when it was last submitted.

        Raises:
            ExperimentError: it never was.
        """
        record = read_json(self.sweep_folder(name) / "sweep.json")
        if record is None:
            folder = self.root / "sweeps"
            known = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
            raise ExperimentError(
                f"nothing was submitted of sweep {name!r} into {self.root} "
                f"(submitted there: {known or 'none'}). See what it would run: "
                f"python -m experiments plan {name}"
            )
        return record

    def write_sweep(self, loaded: LoadedSweep, resolved: list[ResolvedRun]) -> None:
        """Record what a sweep asks for now, make its run folders and links to them."""
        sweep = loaded.sweep
        folder = self.sweep_folder(loaded.name)
        record = {
            "sweep": loaded.name,
            "file": str(loaded.path),
            "question": sweep.question,
            "baseline": loaded.baseline,
            "tags": sweep.tags,
            "ranks": sweep.resources.ranks,
            "seconds_per_iteration": sweep.resources.seconds_per_iteration,
            "submitted": now(),
            "runs": [
                {
                    "id": each.id,
                    "name": each.run.name,
                    "row": each.run.row,
                    "cells": each.run.cells,
                    "seed": each.run.seed,
                    "iterations": each.iterations,
                }
                for each in resolved
            ],
        }
        for each in resolved:
            self._write_run(loaded, each)
            link = folder / each.run.name.replace("/", "_")
            with suppress(FileExistsError, OSError):  # links are for people; nothing reads them
                folder.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(self.run_folder(each.id), folder))
        write_json(folder / "sweep.json", record)

    def _write_run(self, loaded: LoadedSweep, resolved: ResolvedRun) -> None:
        path = self.run_folder(resolved.id) / "run.json"
        if path.exists():
            return
        run = resolved.run
        record = {
            "id": resolved.id,
            "name": run.name,
            "sweep": loaded.name,
            "tags": loaded.sweep.tags,
            "created": now(),
            "ranks": loaded.sweep.resources.ranks,
            "config_file": run.config,
            "overrides": run.overrides,
            # Where a requeued run goes on in Weights & Biases.
            "wandb": {"id": resolved.id, "name": run.name, "group": loaded.name},
            "config": resolved.config,
        }
        write_json(path, record, durable=False)

    def new_token(self) -> str:
        """A name for a submission that no other has."""
        return secrets.token_hex(4)

    def claim(self, token: str, identities: list[str]) -> None:
        """Give runs to a submission; jobs of an earlier one no longer train them."""
        for index, identity in enumerate(identities):
            write_json(
                self.run_folder(identity) / "submission.json",
                {"token": token, "index": index, "claimed": now()},
            )
