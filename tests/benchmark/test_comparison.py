"""The comparison as a whole, on two narrow models."""

from __future__ import annotations

import json

import pytest

from yolof_d2.benchmark.comparison import run_benchmark
from yolof_d2.benchmark.contender import Options
from yolof_d2.benchmark.parts import PARTS

CONFIGS = ["configs/quick/synthetic.yaml", "configs/quick/synthetic_retinanet.yaml"]
OPTIONS = Options(size=(64, 96), batch_size=(2, 1), objects=3, boxes=150, warmup=1, iterations=3)


@pytest.fixture(scope="module")
def record() -> dict:
    return run_benchmark(CONFIGS, ["MODEL.DEVICE", "cpu"], OPTIONS)


def test_the_record_is_plain_json_with_what_it_takes_to_trace_it(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    assert {"commit", "versions", "hardware", "command", "started"} <= record.keys()
    settings = record["settings"]
    assert settings["size"] == (64, 96) and settings["device"] == "cpu"
    assert [model["model"] for model in record["models"]] == ["YOLOF", "RetinaNet"]


def test_parts_add_up_to_the_step_and_all_of_them_take_time(record):
    for model in record["models"]:
        for mode, parts in PARTS.items():
            figures = model[mode]
            assert len(figures["rounds"]["whole"]) == len(figures["rounds"]["parts"]) == 3
            for step in figures["rounds"]["parts"]:
                assert set(step) <= set(parts)
                assert all(step[part] > 0 for part in parts if part != "other")
            assert figures["images_per_second"] == pytest.approx(
                figures["batch_size"] / figures["median_seconds"]
            )
            # Marks cost next to nothing; the machine may be busy with something else.
            assert 0.3 < figures["marked_to_whole"] < 3


def test_as_many_candidates_pass_the_threshold_as_were_asked_for(record):
    for model in record["models"]:
        candidates = model["candidates"]
        assert candidates["passed"] == [150]
        assert 0 < candidates["kept"][0] <= 100
    assert record["models"][0]["candidates"]["of"] == (4 * 6) * 5 * 80


def test_memory_of_a_training_step_is_more_than_that_of_nothing(record):
    for model in record["models"]:
        memory = {mode: kinds["process"] for mode, kinds in model["peak_memory_mib"].items()}
        assert memory["training"] > memory["before"] > 50
        assert memory["inference"] > memory["before"]
