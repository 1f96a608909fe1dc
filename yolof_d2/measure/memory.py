"""Measure the peak memory of this process, of training and of evaluation apart."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

MIB = 1024**2

# Of the process, as the counters that are read and reset here.
_peaks: dict[str, dict[str, float]] = {}
_phase = "train"


def start_measuring() -> None:
    """Forget all measurements and begin the phase ``"train"``."""
    _peaks.clear()
    _begin("train")


@contextmanager
def evaluation_phase() -> Iterator[None]:
    """Count memory used inside for the phase ``"eval"``."""
    before = _phase
    _close()
    _begin("eval")
    try:
        yield
    finally:
        _close()
        _begin(before)


def peak_memory_mib(phase: str) -> dict[str, float]:
    """Return the highest memory use in ``"train"`` or ``"eval"`` since the start, in MiB.

    Returns:
        ``process``, the resident memory of this process (its data loader workers are others), and
        on a GPU ``allocated`` by tensors and ``reserved`` by PyTorch's allocator. Where a system
        cannot reset the peak of a process, ``process`` is that of both phases.
    """
    if phase == _phase:
        _close()
    return dict(_peaks.get(phase, {}))


def _begin(phase: str) -> None:
    global _phase
    _phase = phase
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew (Linux)
    if uses_gpu():
        torch.cuda.reset_peak_memory_stats()


def _close() -> None:
    peak = {"process": _resident_bytes() / MIB}
    if uses_gpu():
        peak["allocated"] = torch.cuda.max_memory_allocated() / MIB
        peak["reserved"] = torch.cuda.max_memory_reserved() / MIB
    kept = _peaks.setdefault(_phase, {})
    kept |= {name: max(value, kept.get(name, 0.0)) for name, value in peak.items()}


def _resident_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def uses_gpu() -> bool:
    """Return whether this process has work on a GPU."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()
