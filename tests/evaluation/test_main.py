from __future__ import annotations

import json
import logging
import shutil

import pytest

from tests.evaluation.cases import random_case
from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.evaluation import analyse_errors
from yolof_d2.evaluation.__main__ import main

RESULTS = "inference/coco_instances_results.json"


@pytest.fixture
def make_run(tmp_path):
    """Writes what an evaluated run leaves behind."""

    def make(name, ground_truth, detections):
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        json_file = folder / "ground_truth.json"
        json_file.write_text(json.dumps(ground_truth))
        cfg = build_cfg(
            overrides=["DATASETS.TEST_JSON", str(json_file), "DATASETS.TEST_IMAGES", str(folder)]
            + ["DATASETS.TRAIN", "()", "MODEL.META_ARCHITECTURE", "YOLOF"]
        )
        resolve_datasets(cfg, eval_only=True)
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / RESULTS).write_text(json.dumps(detections))
        return folder

    return make


def test_a_run_is_analysed_from_its_files(make_run, tmp_path, capsys):
    case = random_case(0)
    run, output = make_run("a", *case), tmp_path / "new" / "errors.json"
    assert main([str(run), "--json", str(output)]) == 0
    analysis = analyse_errors(*case)
    expected = {"ap50": analysis.ap50, "gains": analysis.gains, "counts": analysis.counts}
    assert json.loads(output.read_text()) == {"runs": [{"run_folder": str(run), **expected}]}
    shown = capsys.readouterr().out
    assert f"{analysis.ap50:.2f}" in shown and "difference" not in shown
    for kind, gain in analysis.gains.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(kind)]
        assert line.endswith(f" {gain:.2f} ({analysis.counts[kind]})")


def test_of_two_runs_the_second_minus_the_first_is_shown(make_run, tmp_path, capsys):
    ground_truth, detections = random_case(0)
    runs = [make_run("a", ground_truth, detections), make_run("b", ground_truth, detections[::2])]
    output = tmp_path / "errors.json"
    assert main([*map(str, runs), "--json", str(output)]) == 0
    written = json.loads(output.read_text())
    (a, b), difference = written["runs"], written["difference"]
    assert difference["ap50"] == b["ap50"] - a["ap50"] != 0
    gains, counts = difference["gains"], difference["counts"]
    for kind in gains:
        assert gains[kind] == b["gains"][kind] - a["gains"][kind]
        assert counts[kind] == b["counts"][kind] - a["counts"][kind]
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("background")]
    assert line.endswith(f" {gains['background']:.2f} ({counts['background']})")


def test_what_cannot_be_measured_is_null_in_json(make_run, tmp_path, capsys):
    output = tmp_path / "errors.json"
    assert main([str(make_run("a", random_case(0)[0], [])), "--json", str(output)]) == 0
    (run,) = json.loads(output.read_text())["runs"]
    assert run["gains"]["missed"] is None and run["ap50"] == 0
    assert "nan" in capsys.readouterr().out


def told(caplog, *arguments) -> str:
    """The only error that a failing command says."""
    with caplog.at_level(logging.ERROR):
        assert main([str(argument) for argument in arguments]) == 1
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert "\n" not in record.getMessage()
    return record.getMessage()


def test_runs_on_different_ground_truth_are_refused(make_run, caplog):
    ground_truth, detections = random_case(0)
    less = {**ground_truth, "annotations": ground_truth["annotations"][1:]}
    a, b = make_run("a", ground_truth, detections), make_run("b", less, detections)
    message = told(caplog, a, b)
    assert f"{a} and {b} were evaluated on different ground truth" in message


@pytest.mark.parametrize("missing", ["config.yaml", RESULTS, "."])
def test_a_folder_without_an_evaluated_run_is_named(make_run, caplog, missing):
    run = make_run("a", *random_case(0))
    if missing == ".":
        shutil.rmtree(run)
    else:
        (run / missing).unlink()
    message = told(caplog, run)
    assert str(run) in message and "OUTPUT_DIR of an evaluated run" in message


def test_half_written_detections_are_told(make_run, caplog):
    run = make_run("a", *random_case(0))
    content = (run / RESULTS).read_text()
    (run / RESULTS).write_text(content[: len(content) // 2])
    assert "is damaged" in told(caplog, run)


def test_detections_of_other_images_are_told(make_run, caplog):
    ground_truth, detections = random_case(0)
    run = make_run("a", ground_truth, [*detections, {**detections[0], "image_id": 77}])
    assert "image 77" in told(caplog, run)


def test_ground_truth_without_annotations_is_told(make_run, caplog):
    ground_truth, detections = random_case(0)
    del ground_truth["annotations"]
    assert "has no annotations" in told(caplog, make_run("a", ground_truth, detections))


def test_a_run_without_a_test_set_is_told(make_run, caplog):
    run = make_run("a", *random_case(0))
    config = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in config if "TEST_JSON" not in line and "TEST_IMAGES" not in line]
    text = "\n".join(kept).replace("- ground_truth_", "- unknown_")
    (run / "config.yaml").write_text(text)
    assert "is not known" in told(caplog, run)


def test_a_file_that_cannot_be_written_is_told(make_run, tmp_path, caplog):
    assert str(tmp_path) in told(caplog, make_run("a", *random_case(0)), "--json", tmp_path)
