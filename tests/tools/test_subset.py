from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from yolof_d2.errors import DataError
from yolof_d2.tools.subset import main, write_subset


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in (7, 3, 5)]
    boxes = [
        {"id": n, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
        for n, i in enumerate((5, 7, 7, 3), start=1)
    ]
    path = tmp_path / "all.json"
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    document = {"info": {}, "images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(document))
    return path


def test_keeps_the_first_images_their_annotations_and_all_categories(json_file, tmp_path):
    write_subset(json_file, tmp_path / "new" / "two.json", 2)
    coco = COCO(tmp_path / "new" / "two.json")
    assert coco.getImgIds() == [7, 3]
    assert coco.getAnnIds() == [2, 3, 4]
    assert coco.getCatIds() == [1, 2]


@pytest.mark.parametrize("num_images", [0, 4])
def test_refuses_a_number_of_images_that_is_not_there(json_file, tmp_path, num_images):
    with pytest.raises(DataError, match=f"1 to 3 .* got {num_images}"):
        write_subset(json_file, tmp_path / "out.json", num_images)


def test_the_command_says_what_is_wrong_and_fails(tmp_path, caplog):
    assert main([str(tmp_path / "none.json"), str(tmp_path / "out.json"), "1"]) == 1
    assert "none.json cannot be read" in caplog.text
