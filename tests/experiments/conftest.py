from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.experiments.slurm_cluster import SlurmCluster, missing_requirements


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A running SLURM cluster that `sbatch`, `squeue` and so on use; one for all tests."""
    if missing := missing_requirements():
        pytest.skip(missing)
    with (
        SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster
