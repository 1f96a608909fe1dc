"""Means over seeds, and paired differences with a confidence interval."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Average:
    """A figure over the seeds of a row."""

    mean: float
    deviation: float | None  # sample standard deviation; None of one seed
    count: int  # number of seeds


@dataclass(frozen=True)
class Difference:
    """A row less the baseline, over the seeds that both have."""

    mean: float
    half_width: float | None  # of the 95 % interval, by Student's t; None of one seed
    count: int  # number of those seeds


def average(values: Sequence[float]) -> Average | None:
    """Return mean and deviation; None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Average(statistics.fmean(values), deviation, len(values))


def paired_difference(own: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Return the mean difference of a row and the baseline, from seed -> figure of each.

    It is paired by seed, which cancels what a seed does to both; None without a common seed.
    """
    found = average([value - base[seed] for seed, value in own.items() if seed in base])
    if found is None:
        return None
    half_width = None
    if found.deviation is not None:
        half_width = t_quantile(found.count - 1) * found.deviation / math.sqrt(found.count)
    return Difference(found.mean, half_width, found.count)


@functools.cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Return t with ``P(|T| <= t) = level`` for Student's T of ``freedom`` >= 1 degrees of freedom.

    scipy.special has it too, but its import takes longer than the rest of a report.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the angle of which t is the tangent, to the last bit
        middle = (low + high) / 2
        if _mass_within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _mass_within(angle: float, freedom: int) -> float:
    """Return P(-t < T < t), t = tan(angle) sqrt(freedom): Abramowitz and Stegun, 26.7.3 and 4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * i / (i + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
