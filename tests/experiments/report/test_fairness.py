"""Runs that cannot be compared, and the keys in which they differ."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from experiments.jobs.state import Observation, State
from experiments.report.fairness import find_mixes, unequal_knobs
from experiments.report.outcomes import Outcome, Row
from experiments.store.records import RunRecord, SweepRun
from tests.experiments.finished import CONFIG, DATA, changed, summary


def knobs_of(*configs: dict, overrides: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """Return key -> values of rows with these configs, None where a row does not read it."""
    rows = []
    for name, config in zip("abcdef", configs, strict=False):
        run = SweepRun(id=name, name=name, row=name, cells={"run": name}, seed=0)
        values = {"config": config, "overrides": dict.fromkeys(overrides)}
        record = RunRecord.model_validate({**values, "config_file": "model.yaml"})
        rows.append(Row(name, [Outcome(run, Observation(State.FINISHED), record)]))
    names = [row.name for row in rows]
    both = unequal_knobs(rows)
    different, some = ({k.key: [k.values.get(n) for n in names] for k in each} for each in both)
    return different, some


def test_the_hash_of_the_data_counts_not_its_name(sweep):
    elsewhere = changed(CONFIG, DATASETS__TEST=["my_val"])
    sweep.add({"k": "1"}, 0, summary())
    sweep.add({"k": "2"}, 0, summary(), config=elsewhere, data={**DATA, "my_val": DATA["coco_val"]})
    assert find_mixes(sweep.compare().outcomes) == []
    other = {**DATA, "coco_val": {"bytes": 3, "sha256": "c" * 64}}
    sweep.add({"k": "3"}, 0, summary(), data=other)
    (mix,) = find_mixes(sweep.compare().outcomes)
    assert mix == (
        "evaluated on: coco_val (sha256 bbbbbbbb) by k=1,seed=0, k=2,seed=0; "
        "coco_val (sha256 cccccccc) by k=3,seed=0"
    )


def test_names_count_where_no_hash_was_recorded(sweep):
    sweep.add({"k": "1"}, 0, summary())
    sweep.add({"k": "2"}, 0, summary(), data=None)
    assert find_mixes(sweep.compare().outcomes) == []
    config = changed(CONFIG, DATASETS__TRAIN=["minitrain"])
    sweep.add({"k": "3"}, 0, summary(), config=config, data=None)
    (mix,) = find_mixes(sweep.compare().outcomes)
    assert mix == "trained on: coco_train by k=1,seed=0, k=2,seed=0; minitrain by k=3,seed=0"


def test_schedules_are_compared_by_images(sweep):
    sweep.add({"k": "1"}, 0, summary())
    half = changed(CONFIG, SOLVER__MAX_ITER=200, SOLVER__IMS_PER_BATCH=8)  # as many images
    sweep.add({"k": "2"}, 0, summary(), config=half)
    assert find_mixes(sweep.compare().outcomes) == []
    for seed in range(8):
        longer = changed(CONFIG, SOLVER__MAX_ITER=20000)
        sweep.add({"k": "3"}, seed, summary(), config=longer)
    (mix,) = find_mixes(sweep.compare().outcomes)
    assert mix.startswith(
        "images seen in training: 1,600 by k=1,seed=0, k=2,seed=0; 320,000 by k=3"
    )
    assert mix.endswith("k=3,seed=5 and 2 more")


def test_keys_without_an_effect_and_seeds_are_no_knobs():
    other = changed(
        CONFIG, SEED=3, OUTPUT_DIR="elsewhere", WANDB__ENABLED=True, SOLVER__CHECKPOINT_PERIOD=7
    )
    assert knobs_of(CONFIG, other) == ({}, {})


def test_the_question_comes_first():
    other = changed(CONFIG, MODEL__YOLOF__MATCHER__TOPK=8, SOLVER__BASE_LR=0.01)
    different, some = knobs_of(CONFIG, other, overrides=("MODEL.YOLOF.MATCHER.TOPK",))
    assert list(different.items()) == [
        ("MODEL.YOLOF.MATCHER.TOPK", ["4", "8"]),
        ("SOLVER.BASE_LR", ["0.12", "0.01"]),
    ]
    assert some == {}


def test_models_of_other_kinds_are_compared_by_what_they_read():
    dilations = changed(CONFIG, MODEL__YOLOF__ENCODER__DILATIONS=[1, 1, 1, 1])
    wide = changed(
        CONFIG, MODEL__META_ARCHITECTURE="RetinaNet", MODEL__RETINANET__NORM="GN",
        MODEL__YOLOF__NMS_THRESH_TEST=0.9, SOLVER__BASE_LR=0.01,
    )  # fmt: skip
    different, some = knobs_of(CONFIG, dilations, wide)
    assert different == {
        "MODEL.META_ARCHITECTURE": ["YOLOF", "YOLOF", "RetinaNet"],
        "SOLVER.BASE_LR": ["0.12", "0.12", "0.01"],
        "MODEL.YOLOF.ENCODER.DILATIONS": ["[2, 4, 6, 8]", "[1, 1, 1, 1]", None],
        "MODEL.{YOLOF,RETINANET}.NMS_THRESH_TEST": ["0.6", "0.6", "0.5"],
    }
    # NUM_CONVS and NMS_THRESH_TEST of RetinaNet are what they are for YOLOF, which ignores them.
    assert some == {"MODEL.RETINANET.NORM": [None, None, "GN"]}


def test_two_models_may_share_a_key_that_the_third_lacks():
    retinanet, fcos = (
        changed(CONFIG, MODEL__META_ARCHITECTURE=name) for name in ("RetinaNetPlus", "FCOS")
    )
    different, _ = knobs_of(CONFIG, retinanet, fcos)
    assert different["MODEL.{RETINANET,FCOS}.NORM"] == [None, '""', "GN"]
    assert different["MODEL.{YOLOF,RETINANET,FCOS}.NMS_THRESH_TEST"] == ["0.6", "0.5", "0.6"]
    assert not any("NUM_CONVS" in key for key in different)


def test_a_model_of_a_plug_in_may_read_anything():
    other = changed(CONFIG, MODEL__META_ARCHITECTURE="Mine", MODEL__FCOS__NORM="BN")
    different, _ = knobs_of(CONFIG, other)
    assert different["MODEL.FCOS.NORM"] == ["GN", "BN"]


def test_values_that_differ_look_different():
    other = changed(CONFIG, SOLVER__BASE_LR=0.12 + 1e-12)
    (values,) = knobs_of(CONFIG, other)[0].values()
    assert values[0] != values[1]


def test_the_config_file_is_the_question_where_it_differs(sweep):
    sweep.add({"run": "a"}, 0, summary())
    sweep.add({"run": "b"}, 0, summary(), config_file="other.yaml")
    ((knob,), _) = unequal_knobs(sweep.compare().rows)
    assert (knob.key, knob.asked) == ("config file", True)
    assert knob.values == {"a": "model.yaml", "b": "other.yaml"}


leaves = st.one_of(st.integers(0, 3), st.booleans(), st.lists(st.integers(0, 2), max_size=2))
KEYS = ("A.X", "A.Y", "A.B.X", "A.B.Y", "C")


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {"MODEL": {"META_ARCHITECTURE": "Mine"}}
    for key, value in flat.items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), leaves), min_size=1, max_size=4))
def test_every_key_that_is_not_equal_everywhere_is_listed_and_no_other(flats):
    different, some = knobs_of(*map(nest, flats))
    absent = object()
    unequal = {key for key in KEYS if any(f.get(key, absent) != flats[0].get(key, absent)
                                          for f in flats)}  # fmt: skip
    assert set(different) | set(some) == unequal
    for key in unequal:
        present = [flat[key] for flat in flats if key in flat]
        assert (key in different) == any(value != present[0] for value in present)


def test_a_run_that_is_not_finished_does_not_mix(sweep):
    sweep.add({"k": "1"}, 0, summary())
    sweep.add({"k": "2"}, 0, config=changed(CONFIG, SOLVER__MAX_ITER=1), state="failed")
    outcomes = sweep.compare().outcomes
    assert find_mixes([outcome for outcome in outcomes if outcome.summary]) == []
