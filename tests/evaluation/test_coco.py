from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pycocotools.cocoeval
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.cases import BCCD, COCO128, Case, perturbed_case, random_case
from tests.evaluation.reference import pycocotools_eval
from yolof_d2.errors import DataError
from yolof_d2.evaluation import ERROR_KINDS, COCOBoxEvaluator, analyse_errors

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]

# All that may differ from pycocotools: its np.spacing(1) in tp / (tp + fp + np.spacing(1)), in
# percent and rounded.
LAST_BIT = 3e-14


@contextlib.contextmanager
def data_set(ground_truth: dict[str, Any], folder: Path):
    """Register a data set, and give its name."""
    json_file = folder / "ground_truth.json"
    json_file.write_text(json.dumps({"info": {}, **ground_truth}))
    register_coco_instances("test_evaluation", {}, str(json_file), str(folder))
    try:
        if "annotations" in ground_truth:
            DatasetCatalog.get("test_evaluation")  # this makes classes known, as a loader does
        yield "test_evaluation"
    finally:
        DatasetCatalog.remove("test_evaluation")
        MetadataCatalog.remove("test_evaluation")


def feed(evaluator: COCOEvaluator, case: Case) -> None:
    """Give an evaluator detections, as a model would."""
    ground_truth, detections = case
    categories = sorted(category["id"] for category in ground_truth["categories"])
    by_image = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    evaluator.reset()
    for image in ground_truth["images"]:
        own = by_image[image["id"]]
        corners = torch.tensor([d["bbox"] for d in own], dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        classes = [categories.index(d["category_id"]) for d in own]
        instances = Instances(
            (image.get("height", 1), image.get("width", 1)),
            pred_boxes=Boxes(corners),
            scores=torch.tensor([d["score"] for d in own], dtype=torch.float32),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])


def evaluate(case: Case, folder: Path, **options: Any) -> dict[str, dict[str, float]]:
    folder.mkdir(exist_ok=True)
    with data_set(case[0], folder) as name:
        evaluator = COCOBoxEvaluator(name, str(folder))
        feed(evaluator, case)
        return evaluator.evaluate(**options)


def saved_detections(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "coco_instances_results.json").read_text())


def in_percent(stats: np.ndarray) -> np.ndarray:
    return np.where(stats < 0, np.nan, stats * 100)


def check_against_pycocotools(case: Case, folder: Path) -> None:
    boxes = evaluate(case, folder)["bbox"]
    found = saved_detections(folder)
    ours = np.array([boxes[name] for name in TWELVE])

    reference = pycocotools_eval(case[0], found)
    expected = in_percent(reference.stats)
    np.testing.assert_array_equal(ours[6:], expected[6:])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=LAST_BIT)

    # The whole difference is that constant: with one that is lost in rounding there is none.
    with mock.patch.object(pycocotools.cocoeval.np, "spacing", lambda _: 1e-300):
        reference = pycocotools_eval(case[0], found)
    np.testing.assert_array_equal(ours, in_percent(reference.stats))
    if len(case[0]["categories"]) > 1:
        for index, category in enumerate(case[0]["categories"]):
            precision = reference.eval["precision"][:, :, index, 0, -1]
            precision = precision[precision > -1]
            ap = np.mean(precision) * 100 if precision.size else np.nan
            np.testing.assert_array_equal(boxes[f"AP-{category['name']}"], ap)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num_images=st.integers(1, 10),
    num_classes=st.integers(1, 4),
    max_objects=st.sampled_from([0, 3, 12]),
    max_detections=st.sampled_from([2, 20, 60]),
)
def test_all_numbers_are_those_of_pycocotools(tmp_path_factory, seed, **sizes):
    case = random_case(seed, **sizes)
    if case[1]:
        check_against_pycocotools(case, tmp_path_factory.mktemp("evaluation"))


def test_only_the_100_best_detections_of_an_image_and_class_count(tmp_path):
    case = random_case(3, num_images=3, num_classes=2, max_detections=600)
    per_group = defaultdict(int)
    for detection in case[1]:
        per_group[detection["image_id"], detection["category_id"]] += 1
    assert max(per_group.values()) > 120
    check_against_pycocotools(case, tmp_path)


@pytest.mark.parametrize("json_file", [COCO128, BCCD], ids=["coco128", "bccd"])
def test_all_numbers_are_those_of_pycocotools_on_real_ground_truth(tmp_path, json_file):
    if not json_file.is_file():
        pytest.skip(f"{json_file} is not there; it comes with ../shared, beside the clone")
    check_against_pycocotools(perturbed_case(json_file, seed=0), tmp_path)


def test_an_object_with_id_0_never_counts_as_found_as_in_pycocotools(tmp_path):
    ground_truth, _ = random_case(2, crowds=False)
    keys = ("image_id", "category_id", "bbox")
    found = [{key: a[key] for key in keys} | {"score": 0.5} for a in ground_truth["annotations"]]
    assert evaluate((ground_truth, found), tmp_path)["bbox"]["AP50"] == 100
    for annotation in ground_truth["annotations"]:
        annotation["id"] -= 1
    check_against_pycocotools((ground_truth, found), tmp_path)
    assert evaluate((ground_truth, found), tmp_path)["bbox"]["AP50"] < 100


def test_results_have_detectron2s_names_and_values_and_recall_between_them(tmp_path):
    case = random_case(7)
    ours = evaluate(case, tmp_path)
    with data_set(case[0], tmp_path) as name, contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOEvaluator(name, ("bbox",), output_dir=str(tmp_path / "theirs"))
        feed(evaluator, case)
        theirs = evaluator.evaluate()["bbox"]
    assert list(ours) == ["bbox", "errors"]
    per_class = [name for name in theirs if name.startswith("AP-")]
    assert len(per_class) == 4
    assert list(ours["bbox"]) == TWELVE + per_class
    for name, value in theirs.items():
        np.testing.assert_allclose(ours["bbox"][name], value, rtol=0, atol=LAST_BIT)
    assert saved_detections(tmp_path) == saved_detections(tmp_path / "theirs")
    a, b = (
        torch.load(folder / "instances_predictions.pth", weights_only=False)
        for folder in (tmp_path, tmp_path / "theirs")
    )
    assert a == b


def test_a_single_class_has_no_ap_of_its_own(tmp_path):
    boxes = evaluate(random_case(5, num_classes=1), tmp_path)["bbox"]
    assert list(boxes) == TWELVE


def test_without_any_detection_all_numbers_are_nan(tmp_path):
    ground_truth, _ = random_case(1)
    results = evaluate((ground_truth, []), tmp_path)
    assert list(results["bbox"]) == TWELVE
    assert np.isnan(list(results["bbox"].values())).all()
    errors = dict.fromkeys(ERROR_KINDS, 0.0) | {"missed": float("nan")}
    np.testing.assert_equal(results["errors"], errors)
    assert saved_detections(tmp_path) == []


def test_without_any_object_all_numbers_are_nan(tmp_path):
    ground_truth, detections = random_case(1)
    results = evaluate(({**ground_truth, "annotations": []}, detections), tmp_path)
    assert np.isnan(list(results["bbox"].values())).all()
    assert np.isnan(list(results["errors"].values())).all()


def test_without_annotations_detections_are_saved_and_nothing_else(tmp_path):
    ground_truth, detections = random_case(1)
    del ground_truth["annotations"]
    assert evaluate((ground_truth, detections), tmp_path) == {}
    assert len(saved_detections(tmp_path)) == len(detections)


def test_some_of_the_images(tmp_path):
    case = random_case(9)
    some = [1, 4, 5]
    results = evaluate(case, tmp_path, img_ids=some)
    reference = pycocotools_eval(case[0], saved_detections(tmp_path), image_ids=some)
    np.testing.assert_allclose(
        [results["bbox"][name] for name in TWELVE],
        in_percent(reference.stats),
        rtol=0,
        atol=LAST_BIT,
    )
    kept = [found for found in saved_detections(tmp_path) if found["image_id"] in some]
    truth = {**case[0], "images": [image for image in case[0]["images"] if image["id"] in some]}
    assert results["errors"] == analyse_errors(truth, kept).gains


def test_evaluating_twice_changes_nothing(tmp_path):
    case = random_case(11)
    with data_set(case[0], tmp_path) as name:
        evaluator = COCOBoxEvaluator(name, str(tmp_path))
        feed(evaluator, case)
        first, saved = evaluator.evaluate(), saved_detections(tmp_path)
        np.testing.assert_equal(evaluator.evaluate(), first)
    assert saved_detections(tmp_path) == saved


def test_detections_of_all_ranks_are_evaluated_on_the_first(tmp_path):
    case = random_case(13)
    alone = evaluate(case, tmp_path / "alone")
    with data_set(case[0], tmp_path) as name:
        evaluators = [COCOBoxEvaluator(name, str(tmp_path)) for _ in range(2)]
        for rank, evaluator in enumerate(evaluators):
            images = case[0]["images"][rank::2]
            feed(evaluator, ({**case[0], "images": images}, case[1]))
        gathered = [evaluator._predictions for evaluator in evaluators]
        module = "detectron2.evaluation.coco_evaluation.comm"
        with mock.patch(f"{module}.gather", side_effect=[gathered, []]):
            first = evaluators[0].evaluate()
            with mock.patch(f"{module}.is_main_process", return_value=False):
                assert evaluators[1].evaluate() == {}
    np.testing.assert_equal(first, alone)  # NaN is equal to NaN here


def test_a_class_beyond_those_of_the_data_set_is_told(tmp_path):
    ground_truth, detections = random_case(1)
    more = [*ground_truth["categories"], {"id": 99, "name": "more"}]
    beyond = {**detections[0], "category_id": 99}
    with data_set(ground_truth, tmp_path) as name:
        evaluator = COCOBoxEvaluator(name, str(tmp_path))
        feed(evaluator, ({**ground_truth, "categories": more}, [beyond]))
        with pytest.raises(DataError, match=r"class 4.*test_evaluation has 4 classes"):
            evaluator.evaluate()


def test_the_log_has_the_tables_and_nothing_of_the_library(tmp_path, caplog):
    case = random_case(7)
    with caplog.at_level(logging.DEBUG):
        evaluate(case, tmp_path)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("detectron2.evaluation")]
    titles = ("Evaluation results for bbox", "Average recall for bbox")
    for title in (*titles, "Per-category bbox AP", "AP50 gained by fixing"):
        assert sum(title in message for message in ours) == 1
    assert not [r for r in caplog.records if r.name.startswith("faster_coco_eval")]
