"""Statistics: by hand, and against scipy and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.report.statistics import Average, average, paired_difference, t_quantile

by_seed = st.dictionaries(st.integers(0, 5), st.floats(0, 100), max_size=6)


def test_three_seeds_by_hand():
    # Differences 1, 2 and 3: mean 2, deviation 1; t of two degrees of freedom is 4.302653.
    found = paired_difference({0: 31, 1: 33, 2: 35}, {0: 30, 1: 31, 2: 32})
    assert (found.mean, found.count) == (2, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


def test_only_seeds_that_both_have_count():
    found = paired_difference({0: 40.0, 1: 10.0}, {1: 12.0, 2: 99.0})
    assert (found.mean, found.half_width, found.count) == (-2.0, None, 1)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None


@given(by_seed, by_seed)
def test_the_difference_is_that_of_a_paired_t_test(own, base):
    shared = sorted(set(own) & set(base))
    found = paired_difference(own, base)
    if not shared:
        assert found is None
        return
    a, b = [own[seed] for seed in shared], [base[seed] for seed in shared]
    assert found.count == len(shared)
    assert found.mean == pytest.approx(np.mean(np.subtract(a, b)), abs=1e-9)
    if len(shared) == 1:
        assert found.half_width is None
    elif np.std(np.subtract(a, b)) > 1e-9:  # scipy warns of equal differences
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found.mean - found.half_width == pytest.approx(low, abs=1e-7)
        assert found.mean + found.half_width == pytest.approx(high, abs=1e-7)


@given(st.lists(st.floats(-100, 100), max_size=8))
def test_mean_and_sample_deviation(values):
    found = average(values)
    if not values:
        assert found is None
    elif len(values) == 1:
        assert found == Average(values[0], None, 1)
    else:
        assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
        assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)
        assert found.count == len(values)


def test_equal_differences_have_an_interval_of_no_width():
    assert paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).half_width == 0


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_are_scipys(level):
    for freedom in range(1, 200):
        expected = stats.t.ppf(0.5 + level / 2, freedom)
        assert t_quantile(freedom, level) == pytest.approx(expected, rel=1e-9)
