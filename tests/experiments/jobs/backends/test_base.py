from __future__ import annotations

import os
from pathlib import Path

from experiments.jobs.backends.base import Site, job_environment, surroundings
from experiments.spec.cluster import Cluster

CLUSTER = Cluster(executor="slurm", ranks_per_node=8)


def test_a_run_has_as_many_nodes_as_its_ranks_need():
    nodes = {ranks: Site("c", CLUSTER, "s", ranks).nodes for ranks in (1, 8, 9, 16, 17)}
    assert nodes == {1: 1, 8: 1, 9: 2, 16: 2, 17: 3}


def test_a_job_imports_the_snapshot_before_anything_else(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/before")
    assert job_environment(CLUSTER, Path("/code"), 3) == {
        "PYTHONPATH": f"/code{os.pathsep}/before",
        "SUBMITIT_PREEMPT_SIGNAL": "USR2",
        "OMP_NUM_THREADS": "3",
    }


def test_folder_and_environment_are_those_of_before(tmp_path):
    before, here = dict(os.environ), Path.cwd()
    with surroundings({"OF_THE_JOB": "1"}, tmp_path):
        assert (os.environ["OF_THE_JOB"], Path.cwd()) == ("1", tmp_path)
    assert (dict(os.environ), Path.cwd()) == (before, here)
