from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from yolof_d2.evaluation.pictures import draw_images, pick_images

HEIGHT, WIDTH = 48, 80
SCALE = 480 // WIDTH  # small images are enlarged
METADATA = SimpleNamespace(thing_dataset_id_to_contiguous_id={7: 0}, thing_classes=["cat"])


@pytest.fixture
def draw(tmp_path):
    """Draws images without and with a box, each with a sure and an unsure detection."""
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "image.png")
    box = {"bbox": [20, 20, 30, 20], "category_id": 0}
    records = [
        {"file_name": str(tmp_path / "image.png"), "image_id": i, "annotations": [box] * i}
        for i in range(2)
    ]
    detections = [
        {"image_id": i, "category_id": 7, "bbox": [5, 5, 30.5, 20.25], "score": score}
        for i in range(2)
        for score in (0.9, 0.2)
    ]
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(detections))
    return lambda score_thresh: draw_images(records, METADATA, file, score_thresh=score_thresh)


def test_there_is_a_row_per_image_with_the_truth_on_the_left_and_detections_on_the_right(draw):
    picture = draw(1.0)
    height, width = HEIGHT * SCALE, WIDTH * SCALE
    assert picture.shape == (2 * (height + 6), 2 * width + 6, 3)
    # By hand: the second image has a box of 20 to 50 by 20 to 40, and no detection is that sure.
    differs = (picture[height + 6 :, :width] != 128).any(axis=2)[:height]
    rows, columns = differs.nonzero()
    assert columns.min() == pytest.approx(20 * SCALE, abs=2)
    assert rows.max() == pytest.approx(40 * SCALE, abs=2)
    assert (picture[:height, :width] == 128).all()
    assert (picture[:height, width + 6 :] == 128).all()


def test_a_lower_threshold_draws_more_and_only_on_the_right(draw):
    pictures = [draw(thresh) for thresh in (1.0, 0.9, 0.1)]
    for fewer, more in itertools.pairwise(pictures):
        assert np.array_equal(fewer[:, : WIDTH * SCALE], more[:, : WIDTH * SCALE])
        assert not np.array_equal(fewer[:, WIDTH * SCALE :], more[:, WIDTH * SCALE :])


@pytest.mark.parametrize(("num", "picked"), [(1, [0]), (3, [5, 4, 0]), (8, [5, 4, 3, 2, 1, 0])])
def test_the_most_crowded_images_and_the_emptiest_are_picked(num, picked):
    records = [{"annotations": [0] * count} for count in (3, 0, 5, 1, 4, 2)]
    assert [len(record["annotations"]) for record in pick_images(records, num)] == picked
