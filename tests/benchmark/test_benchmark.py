"""The comparison as a whole, on two narrow models."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from yolof_d2.benchmark.__main__ import main
from yolof_d2.benchmark.contender import Contender, Options, make_image
from yolof_d2.benchmark.cost import describe_cost
from yolof_d2.benchmark.parts import PARTS
from yolof_d2.benchmark.report import draw, render
from yolof_d2.benchmark.run import run_benchmark
from yolof_d2.config import build_cfg
from yolof_d2.measure.model_cost import build_meta_model, count_multiply_adds

pytestmark = pytest.mark.slow  # the record that most tests read

CONFIGS = ["configs/quick/synthetic.yaml", "configs/quick/synthetic_retinanet.yaml"]
PROJECTOR = ["MODEL.YOLOF.ENCODER.NAME", "ProjectorEncoder"]
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


@pytest.mark.parametrize("index", [0, 1])
def test_parameters_and_multiply_adds_of_the_parts_are_those_of_the_model(record, index):
    found = record["models"][index]
    model = build_model(build_cfg(CONFIGS[index], ["MODEL.DEVICE", "cpu"]))
    parameters = sum(sum(part.values()) for part in found["parameters"].values())
    assert parameters == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["other"] == {"trainable": 0, "frozen": 0}
    meta = build_meta_model(build_cfg(CONFIGS[index]))
    whole = count_multiply_adds(meta, tuple(found["padded_size"]))
    assert sum(found["multiply_adds"].values()) == whole


def test_the_encoders_multiply_adds_worked_out_by_hand():
    found = describe_cost(build_cfg(CONFIGS[0], PROJECTOR), (64, 96))
    cells = (64 // 16) * (96 // 16)
    assert found["multiply_adds"]["encoder"] == cells * (256 * 128 + 9 * 128 * 128)


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


def test_steps_leave_the_weights_as_they_are():
    cfg = build_cfg(CONFIGS[1], ["MODEL.DEVICE", "cpu"])
    contender = Contender("a", cfg, OPTIONS)
    before = copy.deepcopy(dict(contender.model.named_parameters()))
    contender.model.train()
    contender.train(lambda _: None)
    for name, parameter in contender.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is not None, name
    assert any(parameter.grad.abs().sum() > 0 for parameter in contender.model.parameters())


def test_images_are_the_same_for_the_same_seed_and_their_boxes_lie_inside():
    first, again, other = (make_image(OPTIONS, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    boxes = first["instances"].gt_boxes.tensor
    assert first["image"].shape == (3, 64, 96) and boxes.shape == (3, 4)
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 15).all()


def test_table_and_picture_show_every_model_and_every_part(record, tmp_path):
    text = render(record)
    for model in record["models"]:
        assert model["name"] in text
    for part in set(PARTS["training"]) | set(PARTS["inference"]):
        assert part in text
    ratio = record["models"][1]["inference"]["ratio_to_first"]["median"]
    assert f"inference 1 : {ratio:.2f}" in text
    files = [tmp_path / "a.png", tmp_path / "a.svg"]
    draw(record, files)
    assert Image.open(files[0]).size[0] > 800
    ET.fromstring(files[1].read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such.yaml"], "no/such.yaml"),
        ([CONFIGS[0], "--size", 8, 64], "--size is 8 64"),
        ([CONFIGS[0], "--iterations", 0], "--iterations is 0, expected 1"),
        ([CONFIGS[0], "--size", 64, 64, "--boxes", 10**6], "ask for fewer"),
        ([CONFIGS[0], "--opts", "MODEL.DEVICE", "mps"], "expected 'cpu' or 'cuda'"),
        ([CONFIGS[0], "--opts", "SOLVER.BAZE_LR", 1], "SOLVER.BASE_LR"),
        ([CONFIGS[0], "--opts", "MODEL.DEVICE"], "expected KEY VALUE pairs"),
    ],
)
def test_a_mistake_ends_in_one_line(tmp_path, caplog, words, said):
    assert main(["--output", str(tmp_path / "out"), *map(str, words)]) == 1
    (line,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("error: ") and said in line and "\n" not in line
    assert not (tmp_path / "out").exists()


def test_the_command_leaves_record_table_and_pictures(tmp_path, capsys):
    words = [CONFIGS[0], "--size", 64, 64, "--iterations", 1, "--warmup", 0, "--boxes", 5]
    words += ["--output", tmp_path, "--opts", "MODEL.DEVICE", "cpu"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    names = ["benchmark.json", "benchmark.md", "benchmark.png", "benchmark.svg"]
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == names
    assert str(tmp_path / "benchmark.json") in said
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["format"] == 1
    seconds = record["models"][0]["training"]
    assert math.isfinite(seconds["median_seconds"])
