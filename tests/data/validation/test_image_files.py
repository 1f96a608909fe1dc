from __future__ import annotations

import json

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from tests.data.validation.good import GOOD, check, edited, image
from yolof_d2.data.validation import check_coco_json


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


def test_headers(folder):
    images = folder / "images"
    Image.new("RGB", (30, 40)).save(images / "sub" / "b.png")
    (images / "empty.png").write_bytes(b"no image")
    assert check(folder, GOOD) == []
    size, unreadable = check(folder, GOOD, read_headers=True)
    assert (size.kind, size.image) == ("image_size", "sub/b.png")
    assert "30 x 40" in size.message and "40 x 30" in size.message
    assert (unreadable.kind, unreadable.image) == ("unreadable_image", "empty.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_follow_exif_rotation_as_detectron2_does(folder, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = folder / "images" / "turned.jpg"
    Image.new("RGB", (40, 30) if orientation < 5 else (30, 40)).save(path, exif=exif)
    assert read_image(str(path), "RGB").shape == (30, 40, 3)
    document = edited(image("file_name", "turned.jpg"))
    assert check(folder, document, read_headers=True) == []
