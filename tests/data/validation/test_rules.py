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
# edit of the good data, kind, image, annotation id; of train or test data alone if it says so
RULES = {
    "no images": (drop("images"), "format"),
    "images no list": (top(images={}), "format"),
    "no image": (top(images=[]), "format"),
    "no categories": (drop("categories"), "format"),
    "categories empty": (top(categories=[]), "format"),
    "annotations no list": (top(annotations=3), "format"),
    "train: no annotations key": (drop("annotations"), "format"),
    "test: no annotations key": (drop("annotations"), "no_ground_truth"),
    "image is a number": (add("images", 5), "entry"),
    "no file_name": (without("images", "file_name"), "entry", 2),
    "no width": (without("images", "width"), "entry", B),
    "no image id": (without("images", "id"), "entry", B),
    "height 0": (image("height", 0), "entry", B),
    "half a pixel": (image("width", 40.5), "entry", B),
    "width is text": (image("width", "40"), "entry", B),
    "annotation is null": (add("annotations", None), "entry"),
    "no bbox": (without("annotations", "bbox"), "entry", A, 12),
    "no category_id": (without("annotations", "category_id"), "entry", A, 12),
    "no annotation id": (without("annotations", "id"), "entry", A),
    "no image_id": (without("annotations", "image_id"), "entry", None, 12),
    "category is true": (annotation(category_id=True), "entry", A, 12),
    "category is text": (annotation(category_id="2"), "entry", A, 12),
    "category without name": (without("categories", "name"), "entry"),
    "category id is text": (add("categories", {"id": "3", "name": "x"}), "entry"),
    "image id twice": (add_copy("images", file_name="empty.png"), "duplicate_image", "empty.png"),
    "annotation id twice": (annotation(id=11), "duplicate_annotation", A, 11),
    "category id twice": (add("categories", {"id": 2, "name": "x"}), "duplicate_category"),
    "unknown category": (add_copy("annotations", id=9, category_id=5), "unknown_category", A, 9),
    "three numbers": (annotation(bbox=[1, 2, 3]), "bad_box", A, 12),
    "text box": (annotation(bbox=[1, 2, 3, "4"]), "bad_box", A, 12),
    "NaN box": (annotation(bbox=[1, 2, 3, float("nan")]), "bad_box", A, 12),
    "infinite box": (annotation(bbox=[1, 2, float("inf"), 3]), "bad_box", A, 12),
    "box is null": (annotation(bbox=None), "bad_box", A, 12),
    "iscrowd text": (annotation(iscrowd="0"), "bad_iscrowd", A, 12),
    "iscrowd 2": (annotation(iscrowd=2), "bad_iscrowd", A, 12),
    "ignore": (annotation(ignore=1), "ignore_flag", A, 12),
    "missing file": (image("file_name", "sub/gone.png"), "missing_image", "sub/gone.png"),
    "missing folder": (image("file_name", "no/b.png"), "missing_image", "no/b.png"),
    "a folder, no file": (image("file_name", "sub"), "missing_image", "sub"),
    "train: nothing": (top(annotations=[]), "nothing_to_learn"),
    "train: no listed image": (all_annotations(image_id=77), "nothing_to_learn"),
    "train: all crowd": (all_annotations(iscrowd=1), "nothing_to_learn"),
    "test: nothing": (top(annotations=[]), "no_ground_truth"),
    "test: no area": (without("annotations", "area"), "missing_for_evaluation", A, 12),
    "test: no iscrowd": (without("annotations", "iscrowd"), "missing_for_evaluation", A, 12),
    "test: area below 0": (annotation(area=-1), "entry", A, 12),
    "test: area text": (annotation(area="50"), "entry", A, 12),
    "test: id 0": (annotation(id=0), "annotation_id_zero", A, 0),
    "width 0": (annotation(bbox=[1, 2, 0, 4]), "empty_box", A, 12),
    "negative height": (annotation(bbox=[1, 2, 4, -4]), "empty_box", A, 12),
    "outside right": (annotation(bbox=[40, 2, 4, 4]), "box_outside", A, 12),
    "outside top": (annotation(bbox=[1, -9, 4, 9]), "box_outside", A, 12),
    "beyond left": (annotation(bbox=[-1.5, 2, 4, 4]), "box_exceeds", A, 12),
    "beyond bottom": (annotation(bbox=[1, 2, 4, 29.5]), "box_exceeds", A, 12),
    "unknown image": (add_copy("annotations", id=9, image_id=77), "unknown_image", 77, 9),
    "polygon": (annotation(segmentation=[[1, 2, 3, 4]]), "dropped_polygon", A, 12),
    "train: unused": (add("categories", {"id": 3, "name": "x"}), "unused_category"),
    "train: crowd only": (annotation(iscrowd=1), "crowd_only_category"),
    "same file": (add_copy("images", id=4), "duplicate_file", A),
    "same name": (lambda d: d["categories"][1].update(name="cat"), "duplicate_name"),
}


SEVERITY = dict(
    words[:2]
    for words in map(str.split, (rules.__doc__ or "").splitlines())
    if len(words) > 2 and words[1] in ("error", "warning")
)


@pytest.mark.parametrize("use", ["train", "test"])
@pytest.mark.parametrize("rule", RULES)
def test_rule(folder, rule, use):
    edit, kind, image_name, annotation_id = (*RULES[rule], None, None)[:4]
    applies = rule.split(":")[0] in (use, rule)
    problems = check(folder, edited(edit), training=use == "train")
    place = (kind, image_name, annotation_id)
    found = [p for p in problems if (p.kind, p.image, p.annotation_id) == place]
    assert len(found) == applies, problems
    assert all(p.json_file.endswith("data.json") for p in found)
    assert all(p.severity == SEVERITY[p.kind] for p in problems)
    # Nothing else is an error: one mistake is told once.
    if applies:
        assert not [p for p in problems if p.severity == "error" and p not in found]


def test_every_documented_rule_is_tested_and_every_kind_is_documented():
    tested = {rule[1] for rule in RULES.values()}
    elsewhere = {"json", "image_folder", "unreadable_image", "image_size"}
    elsewhere |= {"num_classes", "not_registered"}
    assert SEVERITY.keys() == tested | elsewhere


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


def test_a_triangle_is_a_polygon(folder):
    assert check(folder, edited(annotation(segmentation=[[1, 2, 3, 4, 5, 9]]))) == []


def test_training_data_may_lack_area_and_iscrowd_and_have_id_zero(folder):
    document = edited(lambda d: [(e.pop("area"), e.pop("iscrowd")) for e in d["annotations"]])
    document["annotations"][0]["id"] = 0
    assert check(folder, document, training=True) == []
