"""Clusters as data."""

from __future__ import annotations

import pytest

from experiments.errors import ExperimentError
from experiments.spec.cluster import CLUSTERS, load_cluster


@pytest.mark.parametrize("name", ["slurm", "local", "debug"])
def test_the_clusters_that_ship(name):
    found, cluster = load_cluster(name)
    assert (found, cluster.executor) == (name, name)
    assert load_cluster(str(CLUSTERS / f"{name}.yaml")) == (name, cluster)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("executor: slurm\npartion: gpu\n", 2, "no such key: 'partion'; the keys are account"),
        ("executor: pbs\n", 1, "'slurm', 'local' or 'debug', got 'pbs'"),
        ("executor: slurm\n\nnotice_seconds: 0\n", 3, "greater than or equal to 1, got 0"),
        ("executor: slurm\nsignal: usr2\n", 2, "match pattern"),
        ("partition: gpu\n", 1, "the key 'executor' is missing"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, text, line, words):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError) as error:
        load_cluster(str(path))
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert words in str(error.value)


def test_an_unknown_cluster_is_answered_with_the_known_ones():
    with pytest.raises(ExperimentError, match="no cluster 'mine'; known: debug, local, slurm"):
        load_cluster("mine")
