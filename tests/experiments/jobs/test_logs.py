from __future__ import annotations

import pytest

from tests.experiments.tiny import experiments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "shown", "words"),
    [
        ({"WITH": "error", "CRASH_RANK": 1}, "failed", "RuntimeError: the encoder met a batch"),
        ({"WITH": "memory", "CRASH_RANK": 0}, "out of memory", "MemoryError: no memory for this"),
    ],
)
def test_a_crash_ends_with_its_last_line(tiny, runs, node, shown, words):
    sweep = tiny.sweep(ranks=2, overrides=tiny.trouble(CRASH_AT=3, **node))
    said = experiments(runs, "submit", sweep, "--cluster", tiny.cluster(), status=1)
    assert f"1 {shown}" in said and "python -m experiments retry" in said
    table = experiments(runs, "status", tiny.sweep("tiny"))
    assert f"1 {shown}" in table and words in table
    assert words in experiments(runs, "logs", "tiny")
