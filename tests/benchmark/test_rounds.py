from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binom
from torch import nn

from yolof_d2.benchmark import rounds
from yolof_d2.benchmark.rounds import median_interval, percentile, run_rounds, summarise


class Stub:
    def __init__(self, name: str):
        self.name = name
        self.model = nn.Identity()


def test_models_take_turns_and_the_order_is_turned_round(monkeypatch):
    seen = []

    def step(contender, mode, *, parts):
        seen.append((contender.name, parts, contender.model.training))
        return {"backbone": 1.0, "other": float(len(seen))}

    monkeypatch.setattr(rounds, "time_step", step)
    times = run_rounds([Stub("a"), Stub("b")], "training", warmup=1, iterations=2)
    assert "".join(name for name, _, _ in seen) == "abab" + "baba" + "abab"
    assert [parts for _, parts, _ in seen] == [False, False, True, True] * 3
    assert all(training for _, _, training in seen)
    assert times[0]["whole"] == [1 + 6.0, 1 + 9.0]  # its steps of the rounds that count
    assert [step["other"] for step in times[1]["parts"]] == [7.0, 12.0]


def test_figures_worked_out_by_hand():
    first = {"whole": [1.0, 2.0, 4.0], "parts": [{"backbone": 1.0}] * 3}
    times = {"whole": [2.0, 3.0, 4.0], "parts": [{"backbone": 2.0, "other": 1.0}] * 3}
    found = summarise(times, first, "inference", batch_size=6)
    assert (found["median_seconds"], found["p95_seconds"]) == (3.0, 4.0)
    assert found["images_per_second"] == 2.0
    assert found["ratio_to_first"]["median"] == 1.5
    assert (found["ratio_to_first"]["low"], found["ratio_to_first"]["high"]) == (1.0, 2.0)
    assert found["median_seconds_of_parts"]["backbone"] == 2.0
    assert found["median_seconds_of_parts"]["decoder"] == 0.0
    assert found["marked_to_whole"] == 1.0


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 30, 200])
def test_the_interval_of_a_median_has_the_confidence_that_it_says(n):
    values = random.Random(n).sample(range(10**6), n)
    low, high, confidence = median_interval(values)
    below = sorted(values).index(low)  # the median is outside if so many or fewer lie below it
    assert sorted(values).index(high) == n - 1 - below
    expected = 1 - 2 * binom.cdf(below, n, 0.5)
    assert confidence == pytest.approx(max(expected, 0.0))
    if confidence >= 0.95 and below + 1 < n - 1 - below:
        assert 1 - 2 * binom.cdf(below + 1, n, 0.5) < 0.95  # no narrower one has it


def test_a_percentile_is_a_value_that_was_measured():
    assert percentile([3.0, 1.0, 2.0], 95) == 3.0
    assert percentile(list(range(1, 101)), 95) == 95
    assert percentile([7.0], 95) == 7.0
    assert math.isclose(percentile(list(range(1, 21)), 50), 10)
