from __future__ import annotations

import pytest

from tests.data.validation.good import (
    GOOD,
    add,
    add_copy,
    all_annotations,
    annotation,
    check,
    drop,
    edited,
    image,
    top,
    without,
)
from yolof_d2.data.validation import check_coco_json, rules


@pytest.mark.parametrize("training", [True, False])
def test_good_data_has_no_problems(folder, training):
    assert check(folder, GOOD, training=training, read_headers=True) == []


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
    for line in (rules.__doc__ or "").splitlines():
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


def test_boxes_within_a_pixel_of_the_border_are_fine(folder):
    for box in ([-1, -1, 42, 32], [0, 0, 40, 30], [39.5, 29.5, 1.5, 1.5]):
        assert check(folder, edited(annotation(bbox=box))) == []


def test_training_data_may_lack_area_and_iscrowd_and_have_id_zero(folder):
    document = edited(lambda d: [(e.pop("area"), e.pop("iscrowd")) for e in d["annotations"]])
    document["annotations"][0]["id"] = 0
    assert check(folder, document, training=True) == []
