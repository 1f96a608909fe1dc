"""Measure time between marks, without waiting for the device in between."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class Stopwatch:
    """Measures how long each part of a step takes on a device."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begin a step, when the device has nothing left to do."""
        self._wait()
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """Note the end of ``part``; on a GPU, when what was queued for it has run."""
        self._marks.append((part, self._now()))

    def stop(self) -> dict[str, float]:
        """End the step; return seconds by part, after the last mark as ``other``."""
        self.mark("other")
        self._wait()
        seconds: dict[str, float] = {}
        for (_, begin), (part, end) in pairwise(self._marks):
            taken = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            seconds[part] = seconds.get(part, 0.0) + taken
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
