from __future__ import annotations

import re

from experiments.jobs.backends.slurm_commands import STATES, cancel_jobs, find_jobs

# By hand, from squeue(1) and sacct(1).
MEANINGS = {
    "QUEUED": "PENDING CONFIGURING EXPEDITING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD "
    "RESV_DEL_HOLD SPECIAL_EXIT",
    "RUNNING": "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED UPDATE_DB",
    "FINISHED": "COMPLETED",
    "FAILED": "FAILED LAUNCH_FAILED RECONFIG_FAIL",
    "CANCELLED": "CANCELLED REVOKED",
    "TIMED_OUT": "TIMEOUT DEADLINE",
    "OUT_OF_MEMORY": "OUT_OF_MEMORY",
    "NODE_FAILED": "NODE_FAIL BOOT_FAIL",
    "PREEMPTED": "PREEMPTED",
}


def test_what_each_state_means():
    expected = {word: name for name, words in MEANINGS.items() for word in words.split()}
    assert {word: state.name for word, state in STATES.items()} == expected


def test_all_of_many_jobs_are_asked_for_and_cancelled(fake_slurm, tmp_path):
    fake_slurm(**{n: f'echo "$@" >> {tmp_path}/{n}.said' for n in ("sacct", "scancel")})
    ids = [str(number) for number in range(1000, 1450)]
    find_jobs(ids)
    cancel_jobs(ids)
    for name in ("sacct", "scancel"):
        said = (tmp_path / f"{name}.said").read_text()
        assert sorted(re.findall(r"\b1\d{3}\b", said)) == ids, name
