"""Scalars in Detectron2's event storage: memory, speed, gradients and matches of a training.

docs/measurements.md lists every name with its unit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from yolof_d2.modeling.families import family_of_model
from yolof_d2.modeling.matcher.statistics import statistics_from_counts

from .memory import evaluation_phase, peak_memory_mib, start_measuring, uses_gpu

PERIOD = 20  # iterations between two measurements; Detectron2 writes as often

_WARMUP_ITERATIONS = 10  # of every start; slower than what follows
_WARMUP_BATCHES = 5  # of an evaluation


def is_due(iteration: int, max_iter: int) -> bool:
    """Return whether an iteration, counted from 0, is measured."""
    return (iteration + 1) % PERIOD == 0 or iteration + 1 == max_iter


class TrainingMeasurements(HookBase):
    """Write memory and speed of training, and statistics of the matches, over all ranks.

    It runs on all ranks, after ``IterationTimer`` and before what evaluates.
    """

    def __init__(self, model: nn.Module, batch_size: int):
        """``model`` is not wrapped; ``batch_size`` is the images of all ranks."""
        self._model = model
        self._batch_size = batch_size
        self._counting = ExitStack()
        self._counts: list[Tensor] = []

    def before_train(self) -> None:
        start_measuring()

    def before_step(self) -> None:
        if is_due(self.trainer.iter, self.trainer.max_iter):
            counting = family_of_model(self._model).counted_matches(self._model)
            self._counts = self._counting.enter_context(counting)

    def after_step(self) -> None:
        if not is_due(self.trainer.iter, self.trainer.max_iter):
            return
        self._counting.close()
        counted = torch.stack(self._counts).sum(0).tolist() if self._counts else None
        own = (peak_memory_mib("train"), counted)
        gathered = comm.gather(own)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        memories, counts = zip(*gathered, strict=True)
        scalars = {f"train/{name}": value for name, value in _highest(memories).items()}
        for rank, memory in enumerate(memories):
            for name, value in memory.items():
                scalars[f"per_rank/train_memory_{name}_mib_rank{rank}"] = value
        scalars["train/grad_norm"] = self.trainer.grad_norm
        scalars["train/stream"] = float(self.trainer.stream_word)  # 48 bits: exact
        scalars |= self._speed(storage)
        scalars |= {f"match/{name}": value for name, value in _sum_statistics(counts).items()}
        storage.put_scalars(
            smoothing_hint=False,
            **{name: value for name, value in scalars.items() if not math.isnan(value)},
        )

    def _speed(self, storage: EventStorage) -> dict[str, float]:
        first = self.trainer.start_iter + _WARMUP_ITERATIONS
        medians = {}
        for name in ("time", "data_time"):
            history = storage.histories().get(name)
            recent = history.values()[-PERIOD:] if history is not None else []
            values = [value for value, iteration in recent if iteration >= first]
            medians[name] = float(np.median(values)) if values else math.nan
        return {
            "train/images_per_second": self._batch_size / medians["time"],
            "train/data_time_share": medians["data_time"] / medians["time"],
        }


@contextmanager
def measure_evaluation(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure the evaluation of ``model`` inside, which all ranks share.

    Yields:
        A dict that is filled at the end, on the main rank: ``seconds`` of all of it;
        ``images_per_second`` of the model alone, without the first batches, all ranks together; and
        ``memory_<kind>_mib``, the highest of any rank.
    """
    measured: dict[str, float] = {}
    batches: list[tuple[int, float]] = []
    began = 0.0

    def before(*_: Any) -> None:
        nonlocal began
        _wait_for_gpu()
        began = time.perf_counter()

    def after(_: nn.Module, inputs: tuple[list[dict[str, Any]]], __: Any) -> None:
        _wait_for_gpu()
        batches.append((len(inputs[0]), time.perf_counter() - began))

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    start = time.perf_counter()
    try:
        with evaluation_phase():
            yield measured
    finally:
        for handle in handles:
            handle.remove()
    seconds = time.perf_counter() - start
    timed = batches[min(_WARMUP_BATCHES, len(batches) - 1) :] if batches else []
    images, spent = (sum(values) for values in zip(*timed, strict=True)) if timed else (0, 1.0)
    gathered = comm.gather((images / spent, peak_memory_mib("eval")))
    if comm.is_main_process():
        speeds, memories = zip(*gathered, strict=True)
        measured["seconds"] = seconds
        measured["images_per_second"] = sum(speeds)
        measured |= _highest(memories)


def _wait_for_gpu() -> None:
    if uses_gpu():
        torch.cuda.synchronize()


def _highest(memories: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the highest of each kind of memory, as ``memory_<kind>_mib``."""
    return {f"memory_{kind}_mib": max(each[kind] for each in memories) for kind in memories[0]}


def _sum_statistics(counts: Sequence[list[float] | None]) -> dict[str, float]:
    """Return the statistics of the batches of all ranks together."""
    known = [each for each in counts if each is not None]
    if not known:
        return {}
    total = torch.tensor(known, dtype=torch.float64).sum(dim=0)
    return {name: value.item() for name, value in statistics_from_counts(total).items()}
