from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from yolof_d2.config import add_yolof_config
from yolof_d2.data import resolve_datasets, validation
from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.data.validation import Problem, check_coco_json, check_datasets, format_report
from yolof_d2.errors import DataError

GOOD: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "sub/b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "empty.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": i, "image_id": im, "category_id": c, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0}
        for i, im, c in ((11, 1, 1), (12, 1, 2), (13, 2, 1))
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "empty.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path


def check(
    folder: Path, document: object, *, training: bool = True, read_headers: bool = False
) -> list[Problem]:
    path = folder / "data.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return check_coco_json(
        str(path), str(folder / "images"), training=training, read_headers=read_headers
    )


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    edit(document)
    return document


@pytest.mark.parametrize("training", [True, False])
def test_good_data_has_no_problems(folder, training):
    assert check(folder, GOOD, training=training, read_headers=True) == []


def image(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["images"][1].update({key: value})


def annotation(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["annotations"][1].update(values)


def without(section: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section][1].pop(key)


def all_annotations(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: [entry.update(values) for entry in d["annotations"]]


def top(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d.update(values)


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda d: d.pop(key)


def add(section: str, entry: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section].append(entry)


def add_copy(section: str, **changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d[section].append({**d[section][0], **changes})


B, A = "sub/b.png", "a.png"
# edit of the good data, severity and kind, image, annotation id, rule for train and/or test data
RULES = {
    "no images": (drop("images"), "error format", None, None, "tr te"),
    "images no list": (top(images={}), "error format", None, None, "tr te"),
    "no image": (top(images=[]), "error format", None, None, "tr te"),
    "no categories": (drop("categories"), "error format", None, None, "tr te"),
    "categories empty": (top(categories=[]), "error format", None, None, "tr te"),
    "annotations no list": (top(annotations=3), "error format", None, None, "tr te"),
    "train: no annotations key": (drop("annotations"), "error format", None, None, "tr"),
    "test: no annotations key": (drop("annotations"), "warning no_ground_truth", None, None, "te"),
    "image is a number": (add("images", 5), "error entry", None, None, "tr te"),
    "no file_name": (without("images", "file_name"), "error entry", 2, None, "tr te"),
    "no width": (without("images", "width"), "error entry", B, None, "tr te"),
    "no image id": (without("images", "id"), "error entry", B, None, "tr te"),
    "height 0": (image("height", 0), "error entry", B, None, "tr te"),
    "width is text": (image("width", "40"), "error entry", B, None, "tr te"),
    "annotation is null": (add("annotations", None), "error entry", None, None, "tr te"),
    "no bbox": (without("annotations", "bbox"), "error entry", A, 12, "tr te"),
    "no category_id": (without("annotations", "category_id"), "error entry", A, 12, "tr te"),
    "no annotation id": (without("annotations", "id"), "error entry", A, None, "tr te"),
    "no image_id": (without("annotations", "image_id"), "error entry", None, 12, "tr te"),
    "category is text": (annotation(category_id="2"), "error entry", A, 12, "tr te"),
    "category without name": (without("categories", "name"), "error entry", None, None, "tr te"),
    "category id is text": (
        add("categories", {"id": "3", "name": "x"}),
        "error entry",
        None,
        None,
        "tr te",
    ),
    "image id twice": (
        add_copy("images", file_name="empty.png"),
        "error duplicate_image",
        "empty.png",
        None,
        "tr te",
    ),
    "annotation id twice": (annotation(id=11), "error duplicate_annotation", A, 11, "tr te"),
    "category id twice": (
        add("categories", {"id": 2, "name": "x"}),
        "error duplicate_category",
        None,
        None,
        "tr te",
    ),
    "unknown category": (
        add_copy("annotations", id=9, category_id=5),
        "error unknown_category",
        A,
        9,
        "tr te",
    ),
    "three numbers": (annotation(bbox=[1, 2, 3]), "error bad_box", A, 12, "tr te"),
    "text box": (annotation(bbox=[1, 2, 3, "4"]), "error bad_box", A, 12, "tr te"),
    "NaN box": (annotation(bbox=[1, 2, 3, float("nan")]), "error bad_box", A, 12, "tr te"),
    "infinite box": (annotation(bbox=[1, 2, float("inf"), 3]), "error bad_box", A, 12, "tr te"),
    "box is null": (annotation(bbox=None), "error bad_box", A, 12, "tr te"),
    "iscrowd text": (annotation(iscrowd="0"), "error bad_iscrowd", A, 12, "tr te"),
    "iscrowd 2": (annotation(iscrowd=2), "error bad_iscrowd", A, 12, "tr te"),
    "ignore": (annotation(ignore=1), "error ignore_flag", A, 12, "tr te"),
    "missing file": (
        image("file_name", "sub/gone.png"),
        "error missing_image",
        "sub/gone.png",
        None,
        "tr te",
    ),
    "missing folder": (
        image("file_name", "no/b.png"),
        "error missing_image",
        "no/b.png",
        None,
        "tr te",
    ),
    "a folder, no file": (image("file_name", "sub"), "error missing_image", "sub", None, "tr te"),
    "train: nothing": (top(annotations=[]), "error nothing_to_learn", None, None, "tr"),
    "train: all crowd": (all_annotations(iscrowd=1), "error nothing_to_learn", None, None, "tr"),
    "test: nothing": (top(annotations=[]), "warning no_ground_truth", None, None, "te"),
    "test: no area": (without("annotations", "area"), "error missing_for_evaluation", A, 12, "te"),
    "test: no iscrowd": (
        without("annotations", "iscrowd"),
        "error missing_for_evaluation",
        A,
        12,
        "te",
    ),
    "test: area text": (annotation(area="50"), "error entry", A, 12, "te"),
    "test: id 0": (annotation(id=0), "warning annotation_id_zero", A, 0, "te"),
    "width 0": (annotation(bbox=[1, 2, 0, 4]), "warning empty_box", A, 12, "tr te"),
    "negative height": (annotation(bbox=[1, 2, 4, -4]), "warning empty_box", A, 12, "tr te"),
    "outside right": (annotation(bbox=[40, 2, 4, 4]), "warning box_outside", A, 12, "tr te"),
    "outside top": (annotation(bbox=[1, -9, 4, 9]), "warning box_outside", A, 12, "tr te"),
    "beyond left": (annotation(bbox=[-1.5, 2, 4, 4]), "warning box_exceeds", A, 12, "tr te"),
    "beyond bottom": (annotation(bbox=[1, 2, 4, 29.5]), "warning box_exceeds", A, 12, "tr te"),
    "unknown image": (
        add_copy("annotations", id=9, image_id=77),
        "warning unknown_image",
        77,
        9,
        "tr te",
    ),
    "polygon": (annotation(segmentation=[[1, 2, 3, 4]]), "warning dropped_polygon", A, 12, "tr te"),
    "train: unused": (
        add("categories", {"id": 3, "name": "x"}),
        "warning unused_category",
        None,
        None,
        "tr",
    ),
    "train: crowd only": (annotation(iscrowd=1), "warning crowd_only_category", None, None, "tr"),
    "same file": (add_copy("images", id=4), "warning duplicate_file", A, None, "tr te"),
    "same name": (
        lambda d: d["categories"][1].update(name="cat"),
        "warning duplicate_name",
        None,
        None,
        "tr te",
    ),
}


@pytest.mark.parametrize("use", ["tr", "te"])
@pytest.mark.parametrize("rule", RULES)
def test_rule(folder, rule, use):
    edit, severity_and_kind, image_name, annotation_id, uses = RULES[rule]
    severity, kind = severity_and_kind.split()
    problems = check(folder, edited(edit), training=use == "tr")
    found = [
        p
        for p in problems
        if (p.kind, p.image, p.annotation_id) == (kind, image_name, annotation_id)
    ]
    assert len(found) == (1 if use in uses else 0), problems
    assert all(p.severity == severity and p.json_file.endswith("data.json") for p in found)
    # Nothing else is an error: one mistake is told once.
    others = [p for p in problems if p.severity == "error" and p not in found]
    if use in uses:
        assert not others


def test_every_documented_rule_is_tested_and_every_kind_is_documented():
    documented = set()
    for line in (validation.__doc__ or "").splitlines():
        words = line.split()
        if len(words) > 2 and words[1] in ("error", "warning"):
            documented.add((words[0], words[1]))
    tested = {tuple(reversed(rule[1].split())) for rule in RULES.values()}
    elsewhere = {"json", "image_folder", "unreadable_image", "image_size"}
    elsewhere |= {"num_classes", "not_registered"}
    assert documented == tested | {(kind, "error") for kind in elsewhere}


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "not valid json"), ('{"images": [', "not valid json"), ("[1]", "not in COCO format")],
)
def test_no_json_at_all(folder, content, told):
    (problem,) = check(folder, content)
    assert (problem.severity, problem.kind) == ("error", "json")
    assert told in problem.message


def test_missing_and_undecodable_json(folder):
    (problem,) = check_coco_json(str(folder / "gone.json"), str(folder), training=True)
    assert problem.kind == "json" and "gone.json" in problem.message
    (folder / "data.json").write_bytes(b'{"a": "\xff\xfe"}')
    (problem,) = check_coco_json(str(folder / "data.json"), str(folder), training=True)
    assert problem.kind == "json"


def test_missing_image_folder_is_one_problem(folder):
    (folder / "data.json").write_text(json.dumps(GOOD))
    (problem,) = check_coco_json(str(folder / "data.json"), str(folder / "no"), training=True)
    assert problem.kind == "image_folder"


def test_wrong_image_folder_is_suspected_when_all_images_are_missing(folder):
    (folder / "data.json").write_text(json.dumps(GOOD))
    problems = check_coco_json(str(folder / "data.json"), str(folder), training=True)
    assert [p.kind for p in problems] == ["missing_image"] * 3 + ["image_folder"]


def test_name_in_other_case_is_hinted_at(folder):
    (problem,) = check(folder, edited(image("file_name", "sub/B.PNG")))
    assert problem.kind == "missing_image" and "differs in case" in problem.message


def test_absolute_file_name_is_accepted_as_detectron2_does(folder):
    path = str(folder / "images" / "a.png")
    assert check(folder, edited(image("file_name", path))) == []


def test_boxes_within_a_pixel_of_the_border_are_fine(folder):
    for box in ([-1, -1, 42, 32], [0, 0, 40, 30], [39.5, 29.5, 1.5, 1.5]):
        assert check(folder, edited(annotation(bbox=box))) == []


def test_training_data_may_lack_area_and_iscrowd_and_have_id_zero(folder):
    document = edited(lambda d: [(e.pop("area"), e.pop("iscrowd")) for e in d["annotations"]])
    document["annotations"][0]["id"] = 0
    assert check(folder, document, training=True) == []


def test_headers(folder):
    images = folder / "images"
    Image.new("RGB", (30, 40)).save(images / "sub" / "b.png")
    (images / "empty.png").write_bytes(b"no image")
    assert check(folder, GOOD) == []
    size, unreadable = check(folder, GOOD, read_headers=True)
    assert (size.kind, size.image) == ("image_size", "sub/b.png")
    assert "30 x 40" in size.message and "40 x 30" in size.message
    assert (unreadable.kind, unreadable.image) == ("unreadable_image", "empty.png")


def test_headers_follow_exif_rotation_as_detectron2_does(folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 40)).save(folder / "images" / "turned.jpg", exif=exif)
    document = edited(image("file_name", "turned.jpg"))  # 40 x 30 after rotation
    assert check(folder, document, read_headers=True) == []


def many_faults() -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    for index in range(47):
        document["annotations"].append(
            {**GOOD["annotations"][0], "id": 100 + index, "category_id": 9}
        )
    document["annotations"][1]["bbox"] = [1, 2, 0, 0]
    document["images"][1]["file_name"] = "gone.png"
    document["categories"].append({"id": 3, "name": "cow"})
    return document


def test_all_problems_are_in_one_report_with_exact_counts(folder):
    problems = check(folder, many_faults())
    assert {p.kind for p in problems} == {
        "unknown_category",
        "empty_box",
        "missing_image",
        "unused_category",
    }
    short = format_report(problems, max_per_kind=10)
    assert "48 errors, 2 warnings" in short
    assert "error unknown_category (47)" in short and "... and 37 more" in short
    assert short.count("category_id 9") == 10
    assert short.index("missing_image") < short.index("empty_box")  # errors first
    assert "image 'a.png', annotation 12: bbox [1, 2, 0, 0] has no size" in short
    whole = format_report(problems)
    assert whole.count("category_id 9") == 47 and "more" not in whole


def make_cfg(folder: Path, train: object = GOOD, test: object = GOOD) -> CfgNode:
    cfg = get_cfg()
    add_yolof_config(cfg)
    cfg.OUTPUT_DIR = str(folder / "output")
    cfg.MODEL.META_ARCHITECTURE = "YOLOF"
    for split, document in (("TRAIN", train), ("TEST", test)):
        path = folder / f"{split.lower()}.json"
        path.write_text(json.dumps(document))
        cfg.DATASETS[f"{split}_JSON"] = str(path)
        cfg.DATASETS[f"{split}_IMAGES"] = str(folder / "images")
    resolve_datasets(cfg)
    return cfg


def test_check_datasets_passes_good_data_and_tells_its_counts(folder, caplog):
    with caplog.at_level(logging.INFO, logger="yolof_d2"):
        assert check_datasets(make_cfg(folder)) == []
    assert "3 images, 1 of them without annotations; 3 annotations" in caplog.text
    assert not (folder / "output").exists()


def test_check_datasets_raises_once_with_everything_and_writes_the_whole_report(folder):
    bad_test = edited(without("annotations", "area"))
    bad_test["categories"].append({"id": 3, "name": "cow"})
    cfg = make_cfg(folder, many_faults(), bad_test)
    with pytest.raises(DataError) as caught:
        check_datasets(cfg)
    message = str(caught.value)
    for expected in ("train.json", "test.json", "area missing", "... and 37 more", "49 errors"):
        assert expected in message
    report = (folder / "output" / validation.REPORT_NAME).read_text()
    assert report.count("category_id 9") == 47
    assert "test.json" in report


def test_check_datasets_only_logs_warnings_and_removes_an_old_report(folder, caplog):
    cfg = make_cfg(folder, edited(annotation(bbox=[1, 2, 0, 4])))
    (problem,) = check_datasets(cfg)
    assert problem.kind == "empty_box"
    assert "has no size" in caplog.text
    report = folder / "output" / validation.REPORT_NAME
    assert "has no size" in report.read_text()
    check_datasets(make_cfg(folder))
    assert not report.exists()


def test_check_datasets_can_leave_out_a_split(folder):
    bad = edited(annotation(bbox=None))
    assert check_datasets(make_cfg(folder, train=bad), skip_train=True) == []
    assert check_datasets(make_cfg(folder, test=bad), skip_test=True) == []
    with pytest.raises(DataError):
        check_datasets(make_cfg(folder, train=bad), skip_test=True)


def test_check_datasets_reads_headers_of_small_sets_only(folder, monkeypatch):
    cfg = make_cfg(folder)
    (folder / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable_image"):
        check_datasets(cfg)
    assert check_datasets(cfg, read_headers=False) == []
    monkeypatch.setattr(validation, "HEADER_CHECK_MAX_IMAGES", 2)
    assert check_datasets(cfg) == []


def test_check_datasets_compares_the_number_of_classes_with_the_model(folder):
    cfg = make_cfg(folder)
    cfg.MODEL.YOLOF.NUM_CLASSES = 80
    with pytest.raises(DataError, match=r"2 categories, but MODEL\.YOLOF\.NUM_CLASSES = 80"):
        check_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert check_datasets(cfg) == []


def test_check_datasets_covers_built_in_sets_and_skips_other_formats(folder, caplog):
    cfg = make_cfg(folder)
    cfg.DATASETS.TRAIN = ("voc_2007_train", "lvis_v1_train")
    with caplog.at_level(logging.INFO, logger="yolof_d2"):
        assert check_datasets(cfg) == []
    assert "lvis_v1_train is not in COCO format" in caplog.text
    cfg.DATASETS.TEST = ("coco_2017_val_100", "never_heard_of")
    with pytest.raises(DataError, match=r"instances_val2017_100\.json") as caught:
        check_datasets(cfg)
    assert "'never_heard_of' is not registered" in str(caught.value)


def test_a_set_used_for_both_is_checked_once_by_both_rules(folder):
    cfg = make_cfg(folder, edited(without("annotations", "area")))
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    with pytest.raises(DataError, match="1 error, 0 warnings"):
        check_datasets(cfg)


def test_command(folder, capsys):
    written = write_synthetic_dataset(folder / "s", num_train=3, num_val=1, image_size=(96, 96))
    assert validation.main([written.train_json, written.image_folder, "--headers"]) == 0
    assert "3 images" in capsys.readouterr().out
    (folder / "data.json").write_text(json.dumps(edited(without("annotations", "area"))))
    arguments = [str(folder / "data.json"), str(folder / "images")]
    assert validation.main(arguments) == 1
    assert "missing_for_evaluation (1)" in capsys.readouterr().out
    assert validation.main([*arguments, "--use", "train"]) == 0


def test_command_runs_as_a_module_without_warnings(folder):
    arguments = [str(folder / "gone.json"), str(folder / "images")]
    done = subprocess.run(
        [sys.executable, "-m", "yolof_d2.data.validation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "gone.json" in done.stdout
    assert "RuntimeWarning" not in done.stderr
