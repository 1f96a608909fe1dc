from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.experiments.slurm_cluster import SlurmCluster
from tests.waiting import CAP, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    yield slurm
    subprocess.run(["scancel", "--me"], check=True)
    slurm.wait_idle()


def run(*command: str, **options) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=CAP, **options
    ).stdout.strip()


def submit(script: str, folder: Path, *options: str) -> str:
    return run("sbatch", "--parsable", *options, input=f"#!/bin/sh\n{script}\n", cwd=folder)


def wait_for(condition: Callable[[], object]) -> None:
    wait_until(condition, say=lambda: run("squeue", "--states=all"))


def state(job: str) -> str:
    return run("squeue", "--states=all", "--noheader", "--job", job, "--format=%T")


def ends(job: str) -> list[str]:
    """Wait until a job has ended; return the state of each of its runs."""
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
    options = ["--duplicates", "--allocations", "--noheader", "--parsable2", "--format=State"]

    def states() -> list[str]:
        return run("sacct", "--jobs", job, *options).split("\n")

    wait_for(lambda: states()[-1] == state(job))  # sacct lags behind
    return states()


def test_16_ranks_with_8_gpus_a_node(cluster: SlurmCluster, tmp_path: Path):
    task = "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    size = ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]

    job = submit(f"srun sh -c '{task}'", tmp_path, *size, "--output=out")

    assert ends(job) == ["COMPLETED"]
    ranks = sorted(
        (tmp_path / "out").read_text().splitlines(), key=lambda line: int(line.split()[0])
    )
    assert ranks == [f"{i} n{1 if i < 8 else 2} 0,1,2,3,4,5,6,7" for i in range(16)]


def test_the_job_of_a_dead_node_runs_again_elsewhere(cluster: SlurmCluster, tmp_path: Path):
    first_run = "srun sh -c 'echo $$ > pid; sleep 3600'"
    script = f'echo $SLURM_JOB_NODELIST >> nodes; test -n "$SLURM_RESTART_COUNT" || {first_run}'
    job = submit(script, tmp_path)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    (node,) = (tmp_path / "nodes").read_text().split()

    cluster.stop_node(node)

    try:
        pid = (tmp_path / "pid").read_text().strip()
        left = subprocess.run(["ps", "-o", "stat=", "-p", pid], stdout=subprocess.PIPE, text=True)
        assert left.stdout[:1] in ("", "Z")
        assert ends(job) == ["NODE_FAIL", "COMPLETED"]
        other = {"n1": "n2", "n2": "n1"}[node]
        assert (tmp_path / "nodes").read_text().split() == [node, other]
    finally:
        cluster.start_node(node)


def test_main_preempts_preemptable(cluster: SlurmCluster, tmp_path: Path):
    run("scontrol", "update", "PartitionName=preemptable", "GraceTime=1")
    size = ["--nodes=2", "--ntasks-per-node=8"]
    script = 'test -n "$SLURM_RESTART_COUNT" || sleep 3600'
    low = submit(script, tmp_path, *size, "--partition=preemptable")
    wait_for(lambda: state(low) == "RUNNING")

    high = submit("true", tmp_path, *size)

    try:
        assert ends(high) == ["COMPLETED"]
        assert ends(low) == ["PREEMPTED", "COMPLETED"]
    finally:
        run("scontrol", "update", "PartitionName=preemptable", "GraceTime=30")
