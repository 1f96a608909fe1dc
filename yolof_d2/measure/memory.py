"""Peak memory of this process, of training and of evaluation apart."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

MIB = 1024**2

# The counters that are read and reset here are the process's own, and so is what they showed.
_peaks: dict[str, dict[str, float]] = {}
_phase = "train"


def start_measuring() -> None:
    """Forget what was measured; the phase ``"train"`` begins."""
    _peaks.clear()
    _begin("train")


@contextmanager
def evaluation_phase() -> Iterator[None]:
    """What is used inside belongs to the phase ``"eval"``."""
    before = _phase
    _close()
    _begin("eval")
    try:
        yield
    finally:
        _close()
        _begin(before)


def peak_memory_mib(phase: str) -> dict[str, float]:
    """Highest memory use in a phase since :func:`start_measuring`, in MiB.

    Args:
        phase: ``"train"`` or ``"eval"``.

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
    if _uses_gpu():
        torch.cuda.reset_peak_memory_stats()


def _close() -> None:
    kept = _peaks.setdefault(_phase, {})
    for name, value in _read().items():
        kept[name] = max(value, kept.get(name, 0.0))


def _read() -> dict[str, float]:
    peak = {"process": _resident_bytes() / MIB}
    if _uses_gpu():
        peak["allocated"] = torch.cuda.max_memory_allocated() / MIB
        peak["reserved"] = torch.cuda.max_memory_reserved() / MIB
    return peak


def _resident_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _uses_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
