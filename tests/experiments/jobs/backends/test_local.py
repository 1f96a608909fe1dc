from __future__ import annotations

import os
from types import SimpleNamespace

import submitit

from experiments.jobs.backends import BACKENDS, Site
from experiments.jobs.estimate import TimePlan
from experiments.spec.cluster import Cluster
from experiments.store.ledger import Ledger
from experiments.store.records import Submission


def test_runs_side_by_side_have_gpus_of_their_own(tmp_path, monkeypatch):
    asked = []

    class Executor:
        def __init__(self, folder):
            pass

        def update_parameters(self, **parameters):
            asked.append(parameters)

        def submit(self, job):
            return SimpleNamespace(job_id=str(os.getpid()), done=lambda: False)

    monkeypatch.setattr(submitit, "LocalExecutor", Executor)
    site = Site("here", Cluster(executor="local", gpus_per_node=4), "s", 2)
    submission = Submission(token="t", runs=["r"], code=str(tmp_path))
    for slot in range(2):
        BACKENDS["local"].submit(
            Ledger(tmp_path), submission, site, plan=TimePlan(1, 1, ""), slot=slot
        )
    assert [each["visible_gpus"] for each in asked] == [(0, 1), (2, 3)]
