from __future__ import annotations

from tests.experiments.tiny import experiments


def test_plan_shows_what_differs_and_the_arithmetic_and_changes_nothing(tiny, runs):
    overrides = {"MODEL.YOLOF.MATCHER.UNIFORM.TOPK": 2}
    (runs / "code").unlink()  # that of all tests
    sweep = tiny.sweep(
        runs={"a": {}, "b": {"overrides": overrides}},
        resources={"ranks": 2, "seconds_per_iteration": 100},
    )
    said = experiments(runs, "plan", sweep, "--cluster", "local")
    assert "2 runs, 2 ranks each: 2 not submitted" in said
    assert "MODEL.YOLOF.MATCHER.UNIFORM.TOPK=2" in said
    # 6 iterations of 100 s and 15 % are 690 s, with the start 810 s; two runs of two ranks: 0.9 h.
    assert "0.9 rank hours at 100 s an iteration (the sweep file's guess" in said
    assert [path.name for path in runs.iterdir()] == ["cache"]
