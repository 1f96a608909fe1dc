"""Resolved configs, and when they are resolved again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from experiments.errors import ExperimentError
from experiments.spec import resolve
from experiments.spec.resolve import resolve_runs
from experiments.spec.sweep import load_sweep
from tests.experiments.tiny import resolve_here
from yolof_d2.config import build_cfg, restore_cfg
from yolof_d2.data import resolve_datasets


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget between two calls, as commands in processes of their own do."""
    monkeypatch.setattr(resolve, "_stamp", resolve._stamp.__wrapped__)
    monkeypatch.setattr(resolve, "_ask", resolve_here)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the configs of each start of the resolver."""
    counts: list[int] = []
    ask = resolve._ask

    def count(requests):
        counts.append(len(requests))
        return ask(requests)

    monkeypatch.setattr(resolve, "_ask", count)
    return counts


def test_a_run_resolves_to_what_train_net_would_train(tiny, tmp_path):
    overrides = {"SOLVER.BASE_LR": 0.5, "MODEL.YOLOF.MATCHER.UNIFORM.TOPK": 2}
    sweep = tiny.sweep(runs={"a": {"overrides": overrides}}, seeds=[3])
    (run,) = resolve_runs(load_sweep(sweep), tmp_path)
    words = ["SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "[4]", "SOLVER.IMS_PER_BATCH", "2"]
    words += ["SOLVER.BASE_LR", "0.5", "MODEL.YOLOF.MATCHER.UNIFORM.TOPK", "2", "SEED", "3"]
    expected = build_cfg(str(tiny.folder / "model.yaml"), words)
    resolve_datasets(expected)
    assert run.config.root == json.loads(json.dumps(expected))
    assert run.config["MODEL"]["YOLOF"]["NUM_CLASSES"] == 3
    # And the job rebuilds exactly that from the record (JSON has no tuples inside lists).
    assert json.dumps(restore_cfg(json.loads(json.dumps(run.config.root)))) == json.dumps(expected)


def test_each_distinct_config_is_resolved_once_and_remembered_by_content(tiny, tmp_path, asked):
    axes = {"k": {"key": "MODEL.YOLOF.MATCHER.UNIFORM.TOPK", "values": [1, 2]}}
    content = {"runs": {}, "axes": axes, "baseline": {"k": "1"}, "seeds": [0, 1, 2]}
    sweep = tiny.sweep(**content)
    first = resolve_runs(load_sweep(sweep), tmp_path)
    assert asked == [2] and len({run.id for run in first}) == 6
    assert resolve_runs(load_sweep(sweep), tmp_path) == first
    config = tiny.folder / "model.yaml"
    os.utime(config, (1, 1))  # another time, the same content
    assert resolve_runs(load_sweep(sweep), tmp_path) == first
    assert asked == [2]
    axes["k"]["values"].append(3)
    resolve_runs(load_sweep(tiny.sweep(**content)), tmp_path)
    assert asked == [2, 1]
    text = config.read_text()
    try:
        config.write_text(text.replace("WARMUP_ITERS: 2", "WARMUP_ITERS: 1"))
        changed = resolve_runs(load_sweep(sweep), tmp_path)
    finally:
        config.write_text(text)
    assert asked == [2, 1, 3]
    assert not {run.id for run in changed} & {run.id for run in first}


def test_a_damaged_memory_is_made_again(tiny, tmp_path, asked):
    sweep = load_sweep(tiny.sweep())
    first = resolve_runs(sweep, tmp_path)
    (entry,) = (tmp_path / "resolved").iterdir()
    entry.write_text(entry.read_text()[:50])
    assert resolve_runs(sweep, tmp_path) == first
    assert asked == [1, 1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"MODEL.YOLOF.MATCHER.TOPK": 3}, "no such config key: MODEL.YOLOF.MATCHER.TOPK (did you"),
        ({"SOLVER.BASE_LR": "fast"}, "SOLVER.BASE_LR"),
        ({"MODEL.YOLOF.ENCODER.NAME": "Nope"}, "ENCODER.NAME is 'Nope'"),
        ({"MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [99]}, "DILATIONS is [99]"),
        ({"MODEL.BACKBONE.NAME": "no"}, "MODEL.BACKBONE.NAME is 'no'"),
        ({"SOLVER.IMS_PER_BATCH": 3}, "which 2 ranks cannot share evenly"),
        ({"MODEL.ANCHOR_GENERATOR.NAME": "Nope"}, 'its model cannot be built: "No object named'),
        ({"MODEL.WEIGHTS": "nowhere.pkl"}, "there is no file 'nowhere.pkl'"),
        ({"DATASETS.TRAIN_JSON": "gone.json"}, "gone.json"),
        ({"DATASETS.TRAIN_JSON": ""}, "needs both"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_with_its_line(tiny, tmp_path, overrides, words):
    sweep = tiny.sweep(ranks=2, runs={"good": {}, "bad": {"overrides": overrides}}, baseline="good")
    line = next(
        number
        for number, text in enumerate(Path(sweep).read_text().splitlines(), 1)
        if text.strip() == "bad:"
    )
    with pytest.raises(ExperimentError) as error:
        resolve_runs(load_sweep(sweep), tmp_path)
    assert str(error.value).startswith(f"{sweep}:{line}: run 'bad'"), error.value
    assert words in str(error.value)


def test_two_runs_that_are_the_same_are_refused(tiny, tmp_path):
    same = {"MODEL.YOLOF.MATCHER.UNIFORM.TOPK": 4, "OUTPUT_DIR": "elsewhere"}
    sweep = tiny.sweep(runs={"a": {}, "b": {"overrides": same}})
    with pytest.raises(ExperimentError, match=r"run 'b' is the same as 'a' \(line \d+\)"):
        resolve_runs(load_sweep(sweep), tmp_path)


def test_data_are_made_by_the_command_that_the_sweep_names(tiny, tmp_path):
    made = tmp_path / "made"
    keys = {
        f"DATASETS.{split}_{kind}": str(made / path)
        for split, name in (("TRAIN", "train"), ("TEST", "val"))
        for kind, path in (("JSON", f"annotations/instances_{name}.json"), ("IMAGES", "images"))
    }
    command = ["python", "-m", "yolof_d2.data.synthetic", str(made), "--num-train", "4"]
    data = {"file": str(made / "annotations" / "instances_val.json"), "command": command}
    sweep = tiny.sweep(overrides=keys, data=data)
    assert len(resolve_runs(load_sweep(sweep), tmp_path)) == 1
    assert (made / "images").is_dir()
    data["command"] = ["python", "-c", "import sys; sys.exit('no such thing')"]
    data["file"] = str(tmp_path / "never")
    broken = tiny.sweep(overrides={**keys, "SOLVER.BASE_LR": 0.2}, data=data)
    with pytest.raises(ExperimentError, match="failed: no such thing"):
        resolve_runs(load_sweep(broken), tmp_path)
