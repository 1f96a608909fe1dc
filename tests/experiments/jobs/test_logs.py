from __future__ import annotations

from tests.experiments.tiny import experiments


def test_a_crash_ends_with_its_last_line(tiny, runs):  # other crashes: test_slurm_sweeps.py
    shown, words = "out of memory", "MemoryError: no memory for this"
    overrides = tiny.trouble(CRASH_AT=3, CRASH_RANK=1, WITH="memory")
    sweep = tiny.sweep(ranks=2, overrides=overrides)
    said = experiments(runs, "submit", sweep, "--cluster", tiny.cluster(), status=1)
    assert f"1 {shown}" in said and "python -m experiments retry" in said
    table = experiments(runs, "status", tiny.sweep("tiny"))
    assert f"1 {shown}" in table and words in table
    assert words in experiments(runs, "logs", "tiny")
