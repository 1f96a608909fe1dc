"""The resolved config of each run, remembered by the content of what it was made from.

Resolving needs Detectron2 and therefore torch, which takes seconds to import. It happens in a
process of its own (:mod:`experiments.spec.build_configs`), once per distinct config.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError, RecordError
from experiments.store.files import read_json, write_json

from .identity import run_id
from .sweep import LoadedSweep, Run

ROOT = Path(__file__).parents[2]

_LARGE = 1 << 20  # bytes; larger files are known by size and time, smaller ones by content


@dataclass(frozen=True)
class ResolvedRun:
    """A run of a sweep with everything its config says.

    Attributes:
        id: see :func:`experiments.spec.identity.run_id`.
        run: as the sweep asks for it.
        config: all keys with their values, nested.
    """

    id: str
    run: Run
    config: dict[str, Any]

    @property
    def iterations(self) -> int:
        """How long it trains."""
        return self.config["SOLVER"]["MAX_ITER"]


def resolve_runs(loaded: LoadedSweep, cache: Path) -> list[ResolvedRun]:
    """Resolve all runs of a sweep.

    Args:
        loaded: the sweep.
        cache: folder of what was resolved before.

    Raises:
        ExperimentError: a config that cannot be resolved or whose model cannot be built, or two
        runs that are the same; with file and line.
    """
    ranks = loaded.sweep.resources.ranks
    requests = {_request_key(run, ranks): run for run in loaded.runs}
    configs = {key: _remembered(cache, key) for key in requests}
    wanted = [key for key, config in configs.items() if config is None]
    if wanted:
        _make_data(loaded)
        answers = _ask([_request(requests[key], ranks) for key in wanted])
        for key, answer in zip(wanted, answers, strict=True):
            if "error" in answer:
                run = requests[key]
                raise loaded.error(f"run {run.row!r} ({run.config}): {answer['error']}", run.line)
            configs[key] = answer["config"]
            stamps = {file: _stamp(file) for file in answer["files"]}
            write_json(_entry(cache, key), {**answer, "files": stamps}, durable=False)
    return _distinct(loaded, configs, ranks)


def _distinct(
    loaded: LoadedSweep, configs: dict[str, dict[str, Any] | None], ranks: int
) -> list[ResolvedRun]:
    resolved: dict[str, ResolvedRun] = {}
    for run in loaded.runs:
        config = copy.copy(configs[_request_key(run, ranks)] or {})
        config["SEED"] = run.seed
        identity = run_id(config, ranks)
        if identity in resolved:
            twin = resolved[identity].run
            raise loaded.error(
                f"run {run.name!r} is the same as {twin.name!r} (line {twin.line}): their resolved "
                "configs are equal. Remove one of them, or mend the override that has no effect",
                run.line,
            )
        resolved[identity] = ResolvedRun(identity, run, config)
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
        raise loaded.error(
            f"data: {' '.join(data.command)!r} failed: {output.decode().strip()[-500:]}",
            loaded.line("data"),
        ) from error


def _request(run: Run, ranks: int) -> dict[str, Any]:
    flat = [word for pair in run.overrides.items() for word in pair]
    return {"config": run.config, "overrides": flat, "ranks": ranks}


def _request_key(run: Run, ranks: int) -> str:
    # The same words mean something else in another folder, or with other code.
    place = [os.getcwd(), os.environ.get("DETECTRON2_DATASETS"), _code_stamp()]
    text = json.dumps([_request(run, ranks), place], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _entry(cache: Path, key: str) -> Path:
    return cache / "resolved" / f"{key}.json"


def _remembered(cache: Path, key: str) -> dict[str, Any] | None:
    try:
        entry = read_json(_entry(cache, key))
    except RecordError:  # it can be made again
        return None
    if entry is None or any(_stamp(file) != stamp for file, stamp in entry["files"].items()):
        return None
    return entry["config"]


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
        try:
            digest.update(metadata.version(package).encode())
        except metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()


def _ask(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "answers.json")
        done = subprocess.run(
            [sys.executable, "-m", "experiments.spec.build_configs"],
            input=json.dumps({"requests": list(requests), "output": str(output)}),
            env={**os.environ, "PYTHONPATH": _python_path(), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode or not output.is_file():
            raise ExperimentError(
                "the configs could not be resolved; what the resolver said last:\n"
                + done.stdout.strip()[-1500:]
            )
        return json.loads(output.read_text())


def _python_path() -> str:
    """``PYTHONPATH`` with this checkout first, so that it is the code that was asked about."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), *([before] if before else [])])
