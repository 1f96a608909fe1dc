"""Time steps of several models in turn, and sum up the times."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

from .contender import Contender
from .parts import PARTS, marked
from .stopwatch import Stopwatch

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95


class Times(TypedDict):
    """Seconds of the steps of one model in one mode, by round."""

    whole: list[float]  # of steps in which nothing but begin and end is marked
    parts: list[dict[str, float]]  # of steps in which every part is


def time_step(contender: Contender, mode: str, *, parts: bool) -> dict[str, float]:
    """Run one step of a mode; return seconds by part, or of the whole as ``other``."""
    stopwatch = Stopwatch(contender.device)
    mark: Callable[[str], None] = stopwatch.mark if parts else lambda _: None
    with marked(contender.model, mark) if parts else nullcontext():
        stopwatch.start()
        if mode == "training":
            contender.train(mark)
        else:
            contender.detect()
        return stopwatch.stop()


def run_rounds(
    contenders: Sequence[Contender], mode: str, *, warmup: int, iterations: int
) -> list[Times]:
    """Time the models in turn, so that what disturbs the machine disturbs all of them.

    A round is a step of each model as it is, then one of each with its parts marked. The order of
    the models is reversed from one round to the next. The first ``warmup`` rounds do not count.
    """
    times: list[Times] = [{"whole": [], "parts": []} for _ in contenders]
    for contender in contenders:
        contender.model.train(mode == "training")
    order = list(zip(contenders, times, strict=True))
    for number in range(warmup + iterations):
        begin = time.perf_counter()
        for parts in (False, True):
            for contender, kept in order:
                seconds = time_step(contender, mode, parts=parts)
                if number >= warmup and parts:
                    kept["parts"].append(seconds)
                elif number >= warmup:
                    kept["whole"].append(sum(seconds.values()))
        order.reverse()
        if number == 0:
            left = (warmup + iterations - 1) * (time.perf_counter() - begin)
            logger.info("%s: %d + %d rounds, about %.0f s to go", mode, warmup, iterations, left)
    return times


def summarise(times: Times, first: Times, mode: str, batch_size: int) -> dict[str, Any]:
    """Sum up the times of a model, compared with the ``first`` one in the same rounds."""
    ratios = [mine / other for mine, other in zip(times["whole"], first["whole"], strict=True)]
    median = statistics.median(times["whole"])
    interval = zip(("low", "high", "confidence"), median_interval(ratios), strict=True)
    ratio = {"median": statistics.median(ratios), **dict(interval)}
    steps = zip(times["parts"], times["whole"], strict=True)
    marks = [sum(parts.values()) / whole for parts, whole in steps]
    return {
        "batch_size": batch_size,
        "median_seconds": median,
        "p95_seconds": percentile(times["whole"], 95),
        "images_per_second": batch_size / median,
        "ratio_to_first": ratio,
        "median_seconds_of_parts": {
            part: statistics.median(step.get(part, 0.0) for step in times["parts"])
            for part in PARTS[mode]
        },
        "marked_to_whole": statistics.median(marks),
        "rounds": times,
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` of all do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a confidence interval of the median, for any distribution, and its confidence.

    The number of values below the median is binomial (n, 1/2): the median lies between the k-th
    smallest and the k-th largest value unless fewer than k of n are on one side. k is the largest
    with a confidence of :data:`CONFIDENCE`, or 1 where there are too few values for it.
    """
    ordered, n = sorted(values), len(values)

    def confidence(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max([k for k in range(1, n // 2 + 1) if confidence(k) >= CONFIDENCE], default=1)
    return ordered[k - 1], ordered[n - k], max(confidence(k), 0.0)
