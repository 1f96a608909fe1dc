from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from yolof_d2.measure import memory
from yolof_d2.measure.memory import MIB, evaluation_phase, peak_memory_mib, start_measuring

HELD = 200  # MiB


def hold(mib: int) -> bytearray:
    block = bytearray(mib * MIB)
    block[::4096] = b"x" * len(block[::4096])  # touch each page
    return block


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")
def test_training_and_evaluation_have_peaks_of_their_own():
    start_measuring()
    before = peak_memory_mib("train")["process"]
    with evaluation_phase():
        block = hold(HELD)
        del block
    in_evaluation = peak_memory_mib("eval")["process"]
    after = peak_memory_mib("train")["process"]
    assert in_evaluation > before + 0.9 * HELD
    assert after < before + 0.5 * HELD
    block = hold(HELD)
    assert peak_memory_mib("train")["process"] > after + 0.9 * HELD
    assert peak_memory_mib("eval")["process"] == in_evaluation
    del block
    with evaluation_phase():
        pass
    assert peak_memory_mib("train")["process"] > after + 0.9 * HELD  # from before the evaluation
    start_measuring()
    assert peak_memory_mib("train")["process"] < after + 0.5 * HELD
    assert peak_memory_mib("eval") == {}


def test_where_the_system_does_not_tell_the_peak_the_process_does(monkeypatch):
    monkeypatch.setattr(memory, "Path", lambda _: Path("no/such/file"))
    start_measuring()
    kib = peak_memory_mib("train")["process"]
    assert 50 < kib < 1e5
    monkeypatch.setattr(sys, "platform", "darwin")  # counts bytes
    start_measuring()
    assert peak_memory_mib("train")["process"] == pytest.approx(kib / 1024, rel=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_a_gpus_peak_is_that_of_the_phase():
    torch.zeros(1, device="cuda")
    start_measuring()
    with evaluation_phase():
        block = torch.zeros(HELD * MIB, dtype=torch.uint8, device="cuda")
        del block
    assert peak_memory_mib("eval")["allocated"] >= HELD
    assert peak_memory_mib("train")["allocated"] < HELD
    assert peak_memory_mib("eval")["reserved"] >= peak_memory_mib("eval")["allocated"]
