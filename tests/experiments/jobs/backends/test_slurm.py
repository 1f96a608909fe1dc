from __future__ import annotations

from experiments.jobs.backends.base import Site
from experiments.jobs.backends.slurm import _sbatch_parameters
from experiments.jobs.estimate import TimePlan
from experiments.spec.cluster import Cluster
from experiments.store.records import Submission


def test_what_sbatch_is_asked_for():
    cluster = Cluster(
        executor="slurm", ranks_per_node=4, gpus_per_node=4, memory_gb_per_node=1.5,
        notice_seconds=90, max_parallel=3, export="NONE", options={"hold": True},
        setup=["module load x"], srun_options=["--mpi=none"],
    )  # fmt: skip
    submission = Submission(token="t", job_name="yolof.s.t", code="/code")
    asked = _sbatch_parameters(submission, Site("there", cluster, "s", 8), TimePlan(50, 2, ""))
    expected = {
        "job_name": "yolof.s.t", "time": 50, "nodes": 2, "ntasks_per_node": 4, "gpus_per_node": 4,
        "mem": "1536M", "partition": None, "signal_delay_s": 90, "array_parallelism": 3,
        "srun_args": ["--kill-on-bad-exit=1", "--export=ALL", "--mpi=none"],
        "additional_parameters": {"requeue": True, "export": "NONE", "hold": True},
    }  # fmt: skip
    assert {key: asked[key] for key in expected} == expected
    assert asked["setup"][:2] == ["module load x", "cd /code || exit 1"]
