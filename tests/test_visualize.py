from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from yolof_d2 import visualize
from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.synthetic import write_synthetic_dataset

HEIGHT, WIDTH = 48, 80
SCALE = 480 // WIDTH  # small images are enlarged


@pytest.fixture
def run_folder(tmp_path):
    """What an evaluated run leaves behind, with one sure and one unsure detection."""
    data = write_synthetic_dataset(
        tmp_path / "data", num_train=1, num_val=5, image_size=(HEIGHT, WIDTH)
    )
    cfg = build_cfg(
        overrides=["DATASETS.TEST_JSON", data.val_json, "DATASETS.TEST_IMAGES", data.image_folder]
        + ["DATASETS.TRAIN", "()", "MODEL.META_ARCHITECTURE", "YOLOF"]
    )
    resolve_datasets(cfg, eval_only=True)
    run = tmp_path / "run"
    (run / "inference").mkdir(parents=True)
    (run / "config.yaml").write_text(cfg.dump())
    detections = [
        {"image_id": i, "category_id": 1, "bbox": [5, 5, 30.5, 20.25], "score": score}
        for i in range(1, 6)
        for score in (0.9, 0.2)
    ]
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(detections))
    return run


def draw(run_folder, *arguments: str) -> np.ndarray:
    assert visualize.main([str(run_folder), *arguments]) == 0
    return np.asarray(Image.open(run_folder / "predictions.png"))


def test_it_draws_as_many_images_and_detections_as_asked(run_folder):
    picture = draw(run_folder, "--num-images", "3")
    assert picture.shape == (3 * (HEIGHT * SCALE + 6), 2 * WIDTH * SCALE + 6, 3)
    fewer = draw(run_folder, "--num-images", "3", "--score-thresh", "1")
    assert not np.array_equal(picture, fewer)


def test_the_picture_can_go_elsewhere(run_folder, tmp_path):
    output = tmp_path / "new" / "folder" / "picture.png"
    assert visualize.main([str(run_folder), "--output", str(output)]) == 0
    assert output.is_file() and not (run_folder / "predictions.png").exists()


@pytest.mark.parametrize("missing", ["config.yaml", "inference/coco_instances_results.json", "."])
def test_a_folder_without_an_evaluated_run_is_named(run_folder, caplog, missing):
    if missing == ".":
        run_folder = run_folder / "nowhere"
    else:
        (run_folder / missing).unlink()
    with caplog.at_level(logging.ERROR):
        assert visualize.main([str(run_folder)]) == 1
    assert str(run_folder) in caplog.text and "OUTPUT_DIR of an evaluated run" in caplog.text
    assert len(caplog.records) == 1
