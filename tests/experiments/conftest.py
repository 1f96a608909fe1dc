from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.slurm_cluster import SlurmCluster, missing_requirements
from tests.experiments.tiny import Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Data, config and plug-in of sweeps that train in seconds."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of resolved configs, shared since each takes a start of torch."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def runs(tmp_path: Path, cache: Path) -> Path:
    """The folder of all runs of one test."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cache").symlink_to(cache)
    return tmp_path / "runs"


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
