from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from experiments.errors import ExperimentError
from experiments.jobs import rendezvous
from experiments.jobs.rendezvous import init_process_group
from tests.waiting import join


def meet(folder: Path, start: str, rank: int) -> None:
    failure = folder / "failure.json"
    init_process_group(folder, start, failure, rank=rank, ranks=2, ranks_per_node=2)
    os._exit(0 if dist.get_world_size() == 2 and dist.get_rank() == rank else 1)


def test_ranks_meet_and_leave_no_address_behind(tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=meet, args=(tmp_path, "7-0", rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    join(ranks)
    assert not list(tmp_path.iterdir())


def test_each_start_of_a_job_has_an_address_of_its_own(tmp_path, monkeypatch):
    def note(file, *_):
        files.append(file)
        raise InterruptedError

    files: list[Path] = []
    monkeypatch.setattr(rendezvous, "_meet", note)
    for start in ("7-0", "7-1"):
        with pytest.raises(InterruptedError):
            init_process_group(tmp_path, start, tmp_path, rank=1, ranks=2, ranks_per_node=2)
    assert len(set(files)) == 2 and all(file.parent == tmp_path for file in files)


def test_nobody_waits_for_a_rank_0_that_has_failed(tmp_path, monkeypatch):
    def wait(_):
        pytest.fail("it waits")

    monkeypatch.setattr(rendezvous.time, "sleep", wait)
    (tmp_path / "failure.json").touch()
    with pytest.raises(ExperimentError, match="rank 0 did not leave its address"):
        rendezvous._meet(tmp_path / "address.json", tmp_path / "failure.json", 1, 2)
