"""Resolve the configs of a sweep, and cache them by the content of what they were made from.

Resolving needs Detectron2 and therefore torch, which takes seconds to import. It happens in a
process of its own (:mod:`experiments.spec.build_configs`), once per distinct config.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from experiments.errors import ExperimentError, RecordError
from experiments.store.record_files import now, read_record, write_record
from experiments.store.records import (
    Record,
    ResolvedConfig,
    RunRecord,
    SweepRecord,
    SweepRun,
    WandbNames,
)
from experiments.store.snapshot import ROOT, python_path

from .identity import run_id
from .sweep import LoadedSweep, Run

_LARGE = 1 << 20  # bytes; larger files are known by size and time, smaller ones by content


class ConfigRequest(BaseModel):
    """A config to resolve; overrides are keys and values, flat."""

    config: str
    overrides: list[Any]
    ranks: int


class ConfigAnswer(Record):
    """A resolved config, as :mod:`experiments.spec.build_configs` returns it, and as it is cached.

    ``files`` are those it was made from, with their stamps once they are known.
    """

    config: ResolvedConfig | None = None  # None if there is an error
    model_node: str | None = None  # see RunRecord
    files: dict[str, str] = {}
    error: str = ""  # why it cannot be resolved, or its model cannot be built


@dataclass(frozen=True)
class ResolvedRun:
    """A run of a sweep and its resolved config."""

    id: str  # see experiments.spec.identity.run_id
    run: Run
    config: ResolvedConfig
    model_node: str | None  # see RunRecord

    @property
    def iterations(self) -> int:
        """Length of its training."""
        return int(self.config["SOLVER.MAX_ITER"])


def resolve_runs(loaded: LoadedSweep, cache: Path) -> list[ResolvedRun]:
    """Resolve all runs of a sweep, with the folder of what was resolved before.

    Raises:
        ExperimentError: a config cannot be resolved, its model cannot be built, or two runs are the
        same; with file and line.
    """
    ranks = loaded.sweep.resources.ranks
    requests = {_request_key(run, ranks): run for run in loaded.runs}
    known = {key: found for key in requests if (found := _cached(cache, key)) is not None}
    wanted = [key for key in requests if key not in known]
    if wanted:
        _make_data(loaded)
        answers = _ask([_request(requests[key], ranks) for key in wanted])
        for key, answer in zip(wanted, answers, strict=True):
            if answer.error:
                run = requests[key]
                raise loaded.error(f"run {run.row!r} ({run.config}): {answer.error}", run.line)
            stamps = {file: _stamp(file) for file in answer.files}
            known[key] = answer.model_copy(update={"files": stamps})
            write_record(_entry(cache, key), known[key], durable=False)
    return _distinct(loaded, known, ranks)


def _distinct(
    loaded: LoadedSweep, answers: dict[str, ConfigAnswer], ranks: int
) -> list[ResolvedRun]:
    resolved: dict[str, ResolvedRun] = {}
    for run in loaded.runs:
        answer = answers[_request_key(run, ranks)]
        values = answer.config.root if answer.config is not None else {}
        config = ResolvedConfig({**values, "SEED": run.seed})
        identity = run_id(config, ranks)
        if identity in resolved:
            twin = resolved[identity].run
            raise loaded.error(
                f"run {run.name!r} is the same as {twin.name!r} (line {twin.line}): their resolved "
                "configs are equal. Remove one of them, or correct the override that has no effect",
                run.line,
            )
        resolved[identity] = ResolvedRun(identity, run, config, answer.model_node)
    return list(resolved.values())


def _make_data(loaded: LoadedSweep) -> None:
    data = loaded.sweep.data
    if data is None or Path(data.file).exists():
        return
    command = [sys.executable if word == "python" else word for word in data.command]
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "output", None) or str(error).encode()
        message = f"data: {' '.join(data.command)!r} failed: {output.decode().strip()[-500:]}"
        raise loaded.error(message, loaded.line("data")) from error


def _request(run: Run, ranks: int) -> ConfigRequest:
    flat = [word for pair in run.overrides.items() for word in pair]
    return ConfigRequest(config=run.config, overrides=flat, ranks=ranks)


def _request_key(run: Run, ranks: int) -> str:
    # The same words mean something else in another folder, or with other code.
    place = [os.getcwd(), os.environ.get("DETECTRON2_DATASETS"), _code_stamp()]
    text = json.dumps([_request(run, ranks).model_dump(), place], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _entry(cache: Path, key: str) -> Path:
    return cache / "resolved" / f"{key}.json"


def _cached(cache: Path, key: str) -> ConfigAnswer | None:
    try:
        entry = read_record(_entry(cache, key), ConfigAnswer)
    except RecordError:  # it is resolved again
        return None
    if entry is None or any(_stamp(file) != stamp for file, stamp in entry.files.items()):
        return None
    return entry


@functools.cache
def _stamp(file: str) -> str:
    try:
        status = os.stat(file)
        if status.st_size > _LARGE:
            return f"{status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return "missing"


@functools.cache
def _code_stamp() -> str:
    digest = hashlib.sha256()
    for file in sorted((ROOT / "yolof_d2").rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(Path(__file__).with_name("build_configs.py").read_bytes())
    for package in ("detectron2", "torch", "timm"):
        with suppress(metadata.PackageNotFoundError):
            digest.update(metadata.version(package).encode())
    return digest.hexdigest()


def _ask(requests: Sequence[ConfigRequest]) -> list[ConfigAnswer]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "answers.json")
        done = subprocess.run(
            [sys.executable, "-m", "experiments.spec.build_configs", str(output)],
            input=json.dumps([request.model_dump() for request in requests]),
            # This checkout comes first on the path: it is the code that was asked about.
            env={**os.environ, "PYTHONPATH": python_path(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode or not output.is_file():
            raise ExperimentError(
                "the configs could not be resolved; what the resolver said last:\n"
                + done.stdout.strip()[-1500:]
            )
        return [ConfigAnswer.model_validate(each) for each in json.loads(output.read_text())]


def sweep_record(loaded: LoadedSweep, resolved: Sequence[ResolvedRun]) -> SweepRecord:
    """Make the record of a sweep."""
    sweep = loaded.sweep
    runs = [SweepRun(id=each.id, name=each.run.name, row=each.run.row, cells=each.run.cells,
                     seed=each.run.seed, iterations=each.iterations)
            for each in resolved]  # fmt: skip
    return SweepRecord(
        sweep=loaded.name,
        file=str(loaded.path),
        question=sweep.question,
        baseline=loaded.baseline,
        tags=sweep.tags,
        ranks=sweep.resources.ranks,
        seconds_per_iteration=sweep.resources.seconds_per_iteration,
        submitted=now(),
        runs=runs,
    )


def run_record(loaded: LoadedSweep, resolved: ResolvedRun) -> RunRecord:
    """Make the record of a run."""
    run = resolved.run
    return RunRecord(
        id=resolved.id,
        name=run.name,
        sweep=loaded.name,
        tags=loaded.sweep.tags,
        created=now(),
        ranks=loaded.sweep.resources.ranks,
        config_file=run.config,
        overrides=run.overrides,
        wandb=WandbNames(id=resolved.id, name=run.name, group=loaded.name),
        config=resolved.config,
        model_node=resolved.model_node,
    )
