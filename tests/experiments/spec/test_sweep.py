"""Sweep files: the runs they expand to, and errors with file and line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import ExperimentError
from experiments.spec.sweep import LoadedSweep, describe_sweeps, load_sweep, sweep_names

HEAD = """\
question: Which?
config: configs/x.yaml
"""
AXES = """\
axes:
  encoder:
    A: {}
    B: {overrides: {MODEL.E: b}}
  k: {key: MODEL.K, values: [1, 2, 3]}
baseline: {encoder: A, k: "1"}
"""


def load(tmp_path: Path, text: str, variant: str = "") -> LoadedSweep:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return load_sweep(f"{path}{variant}")


def refuse(tmp_path: Path, text: str, variant: str = "") -> str:
    with pytest.raises(ExperimentError) as error:
        load(tmp_path, text, variant)
    return str(error.value)


def test_product_of_axes_in_the_order_of_the_file(tmp_path):
    loaded = load(tmp_path, HEAD + AXES)
    assert loaded.name == "study"
    assert [run.name for run in loaded.runs] == [
        f"encoder={encoder},k={k}" for encoder in "AB" for k in (1, 2, 3)
    ]
    last = loaded.runs[-1]
    assert last.overrides == {"MODEL.E": "b", "MODEL.K": 3}
    assert (last.config, last.seed) == ("configs/x.yaml", 0)
    assert loaded.baseline == "encoder=A,k=1"


def test_seeds_are_in_the_name_only_when_there_are_several(tmp_path):
    loaded = load(tmp_path, HEAD + AXES + "seeds: [0, 5]\n")
    assert [run.name for run in loaded.runs[:2]] == ["encoder=A,k=1,seed=0", "encoder=A,k=1,seed=5"]
    assert {run.row for run in loaded.runs[:2]} == {"encoder=A,k=1"}
    assert [run.seed for run in loaded.runs[:2]] == [0, 5]


def test_exclusions(tmp_path):
    loaded = load(tmp_path, HEAD + AXES + 'exclude: [{encoder: B, k: ["1", "3"]}]\n')
    assert [run.name for run in loaded.runs][3:] == ["encoder=B,k=2"]


def test_zipped_axes_advance_together(tmp_path):
    text = """\
axes:
  a: {key: A, values: [1, 2]}
  b: {key: B, values: [3, 4]}
  c: {key: C, values: [5, 6]}
zip: [[a, c]]
baseline: {a: "1", b: "3"}
"""
    cells = [run.cells for run in load(tmp_path, HEAD + text).runs]
    assert sorted(tuple(cell.values()) for cell in cells) == [
        ("1", "3", "5"), ("1", "4", "5"), ("2", "3", "6"), ("2", "4", "6"),
    ]  # fmt: skip


def test_explicit_runs_beside_axes_and_other_configs(tmp_path):
    text = AXES + "runs:\n  Retina: {config: configs/r.yaml, overrides: {SOLVER.BASE_LR: 0.1}}\n"
    run = load(tmp_path, HEAD + "overrides: {SOLVER.BASE_LR: 1, X: 2}\n" + text).runs[-1]
    assert (run.name, run.config, run.cells) == ("Retina", "configs/r.yaml", {"run": "Retina"})
    assert run.overrides == {"SOLVER.BASE_LR": 0.1, "X": 2}


def test_a_variant_replaces_top_level_keys(tmp_path):
    text = HEAD + AXES + "variants:\n  small: {config: configs/s.yaml, seeds: [7]}\n"
    loaded = load(tmp_path, text, ":small")
    assert loaded.name == "study.small"
    assert {(run.config, run.seed) for run in loaded.runs} == {("configs/s.yaml", 7)}
    assert load(tmp_path, text).runs[0].config == "configs/x.yaml"


axis = st.dictionaries(
    st.sampled_from(["MODEL.A", "MODEL.B", "MODEL.C", "MODEL.D"]),
    st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    min_size=1,
    max_size=3,
)


@given(axes=axis, seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
def test_any_product_equals_the_nested_loops(tmp_path_factory, axes, seeds):
    content = {
        "question": "?",
        "config": "c.yaml",
        "seeds": seeds,
        "axes": {key[-1]: {"key": key, "values": values} for key, values in axes.items()},
        "baseline": {key[-1]: str(values[0]) for key, values in axes.items()},
    }
    path = tmp_path_factory.mktemp("sweep") / "any.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    runs = load_sweep(str(path)).runs
    expected = [
        (dict(zip(axes, values, strict=True)), seed)
        for values in itertools.product(*axes.values())
        for seed in seeds
    ]
    assert [(run.overrides, run.seed) for run in runs] == expected
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + AXES + "sedes: [1]\n", 9, "no such key: 'sedes'; the keys are axes, baseline"),
        ("question: Q\n" + AXES, 1, "the key 'config' is missing"),
        (HEAD + AXES.replace("values: [1, 2, 3]", "values: []"), 7, "at least 1 item"),
        (HEAD + AXES.replace("MODEL.E:", "model.e:"), 6, "match pattern"),
        (HEAD + AXES.replace("overrides: {MODEL.E: b}", "over: 1"), 6, "no such key: 'over'"),
        (HEAD + AXES + "seeds: [1, 1]\n", 9, "each only once"),
        (HEAD + AXES + "seeds: [x]\n", 9, "valid integer, unable to parse string as an integer"),
        (HEAD + AXES.replace("MODEL.E: b", "MODEL.K: b"), 7, "'encoder' and 'k' both set MODEL.K"),
        (HEAD + AXES.replace("MODEL.E: b", "SEED: 1"), 6, "SEED is set by 'seeds'"),
        (HEAD + AXES.replace("[1, 2, 3]", "[1, 1]"), 7, "axis 'k' has a value twice"),
        (HEAD + AXES.replace('k: "1"', 'k: "9"'), 8, "fits 0 rows, expected exactly one of"),
        (HEAD + AXES.replace(', k: "1"', ""), 8, "fits 3 rows"),
        (HEAD + AXES + "exclude: [{k: '9'}]\n", 9, "there is no k=9; known: ['1', '2', '3']"),
        (HEAD + AXES + "exclude: [{q: a}]\n", 9, "there is no q=a; known: ['encoder', 'k']"),
        (HEAD + AXES + "exclude: [{encoder: [A, B]}]\n", 1, "no run"),
        (HEAD + AXES + "zip: [[encoder, q]]\n", 9, "axis 'q' is none of"),
        (HEAD + AXES + "zip: [[encoder, k]]\n", 9, "of one length"),
        (HEAD + AXES + "runs:\n  encoder=A,k=1: {}\n", 10, "two runs are named"),
        (HEAD + HEAD + AXES, 3, "'question' is there twice"),
        (HEAD + "axes: [\n", 4, "did not find expected node content"),
        ("- 1\n", 1, "expected keys with values"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(tmp_path, text, line, words):
    message = refuse(tmp_path, text)
    assert message.startswith(f"{tmp_path}/study.yaml:{line}: "), message
    assert words in message


def test_an_error_in_a_variant_has_the_line_of_the_variant(tmp_path):
    text = HEAD + AXES + "variants:\n  small:\n    seeds: [1, 1]\n"
    assert f"study.yaml:{11}:" in refuse(tmp_path, text, ":small")
    assert "there is no variant 'tiny'; its variants: small" in refuse(tmp_path, text, ":tiny")


def test_an_unknown_sweep_is_answered_with_the_nearest_name():
    with pytest.raises(ExperimentError, match="did you mean 'dilated_encoder'"):
        load_sweep("dilated_encodr")
    with pytest.raises(ExperimentError, match=r"there is no sweep file nowhere/x\.yaml"):
        load_sweep("nowhere/x.yaml")


def test_each_sweep_that_ships_has_a_question_and_a_variant_for_the_cpu():
    rows = describe_sweeps()
    assert [name for name, _, _ in rows] == sweep_names()
    for name, question, variants in rows:
        assert question.endswith((")", "?")), name
        assert variants == ["small"] or name == "demo"
