"""The process group of a job: one process per rank, as SLURM or submitit started them.

Rank 0 takes a free port on its node and writes host and port into the run folder, under a name that
only this start uses; the other ranks read them there. A requeued job does the same again.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from experiments.errors import ExperimentError
from experiments.store.record_files import read_record, write_record
from experiments.store.records import Record

_PATIENCE = timedelta(minutes=10)  # until the last rank of a job must have started


class MeetingPoint(Record):
    """Address at which rank 0 waits for the others."""

    host: str
    port: int


def init_process_group(
    folder: Path, start: str, failure: Path, *, rank: int, ranks: int, ranks_per_node: int
) -> None:
    """Join the ranks of a job, over NCCL on GPUs, else over gloo; set up Detectron2's ``comm``.

    Each rank takes the GPU of its local rank, or the only one that it sees.

    Args:
        folder: on a disk that all nodes see.
        start: names this start of this job.
        failure: a file that exists when rank 0 has failed; the others then stop waiting.
        ranks: of one rank, no group is made.

    Raises:
        ExperimentError: rank 0 does not appear.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(rank % ranks_per_node if gpus > 1 else 0)
    if ranks == 1:
        return
    meeting_point = folder / f"rendezvous-{start}.json"
    store = dist.PrefixStore(start, _meet(meeting_point, failure, rank, ranks))
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    comm.create_local_process_group(ranks_per_node)
    comm.synchronize()
    if rank == 0:
        meeting_point.unlink()  # all are here; a later start must not find this address


def _meet(file: Path, failure: Path, rank: int, ranks: int) -> dist.TCPStore:
    if rank == 0:
        host = socket.gethostname()
        # Port 0: the system gives one that is free, and it is never free again in between.
        store = dist.TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False)
        write_record(file, MeetingPoint(host=host, port=store.port))
        return store
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while (address := read_record(file, MeetingPoint)) is None:
        if failure.exists() or time.monotonic() > deadline:
            raise ExperimentError(
                f"rank 0 did not leave its address in {file}: it failed (its own word is then "
                f"beside this one), did not start within {_PATIENCE}, or sees another disk"
            )
        time.sleep(0.2)
        os.listdir(file.parent)  # network file systems remember that a file was absent
    return dist.TCPStore(address.host, address.port, ranks, is_master=False, timeout=_PATIENCE)


def leave_process_group() -> None:
    """Undo :func:`init_process_group`, for a process that goes on with another run."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
