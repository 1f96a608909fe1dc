from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.experiments.slurm_cluster import SlurmCluster, missing_requirements
from tests.experiments.tiny import Tiny, make_runs, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Data, config and plug-in of sweeps that train in seconds."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of resolved configs and copied code, which all runs can use."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def runs(tmp_path: Path, shared: Path) -> Path:
    """The folder of all runs of one test."""
    return make_runs(tmp_path / "runs", shared)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put commands in the place of SLURM's: name -> shell script, for the rest ``exit 0``."""
    folder = tmp_path / "bin"

    def write(**scripts: str) -> None:
        folder.mkdir()
        for name in ("sbatch", "squeue", "scancel", "sacct", "srun"):
            (folder / name).write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 0')}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return write


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Start a SLURM cluster for `sbatch`, `squeue` and so on; one for all tests."""
    if missing := missing_requirements():
        pytest.skip(missing)
    with (
        SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster
