from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from yolof_d2.data import synthetic
from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.data.validation import check_coco_json


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return write_synthetic_dataset(folder, num_train=60, num_val=5, image_size=(96, 128), seed=3)


@pytest.fixture(scope="module")
def coco(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(dataset.train_json)


@pytest.mark.parametrize("seed", range(40))
def test_box_and_area_of_a_single_object_are_those_of_its_pixels(seed):
    image, objects = synthetic.draw_scene(
        np.random.default_rng(seed), (64, 80), num_objects=1, cluttered=False
    )
    (drawn,) = objects
    foreground = image.any(axis=2)
    rows, columns = np.nonzero(foreground)
    assert drawn.bbox == (
        columns.min(),
        rows.min(),
        columns.max() - columns.min() + 1,
        rows.max() - rows.min() + 1,
    )
    assert drawn.area == foreground.sum()
    fill = drawn.area / (drawn.bbox[2] * drawn.bbox[3])
    # A disc fills pi/4 of its box, a triangle half of it; tiny shapes are coarse.
    expected = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}
    assert fill == pytest.approx(expected[synthetic.CLASS_NAMES[drawn.category_id - 1]], abs=0.08)


@pytest.mark.parametrize("seed", range(15))
def test_every_object_is_visible_with_its_box_in_cluttered_scenes(seed):
    image, objects = synthetic.draw_scene(np.random.default_rng(seed), (192, 192), num_objects=6)
    assert objects
    for drawn in objects:
        rows, columns = np.nonzero((image == drawn.color).all(axis=2))
        assert len(rows) >= 0.6 * drawn.area
        x, y, width, height = drawn.bbox
        assert x <= columns.min() and columns.max() < x + width
        assert y <= rows.min() and rows.max() < y + height


def test_pycocotools_reads_it(coco):
    assert coco.getImgIds() == list(range(1, 61))
    assert sorted(coco.getAnnIds()) == list(range(1, len(coco.getAnnIds()) + 1))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["circle", "square", "triangle"]
    assert {a["category_id"] for a in coco.anns.values()} == {1, 2, 3}
    assert all(a["iscrowd"] == 0 and a["area"] > 0 for a in coco.anns.values())


def test_it_passes_the_checks_with_headers(dataset):
    for json_file, training in ((dataset.train_json, True), (dataset.val_json, False)):
        assert not check_coco_json(
            json_file, dataset.image_folder, training=training, read_headers=True
        )


def test_images_have_the_asked_size_and_one_to_six_or_no_objects(dataset, coco):
    counts = []
    for entry in coco.loadImgs(coco.getImgIds()):
        assert (entry["height"], entry["width"]) == (96, 128)
        with Image.open(Path(dataset.image_folder) / entry["file_name"]) as image:
            assert (image.height, image.width, image.mode) == (96, 128, "RGB")
        counts.append(len(coco.getAnnIds(imgIds=[entry["id"]])))
    assert set(counts) <= set(range(7))
    assert 0 in counts


def test_default_share_of_empty_images_and_range_of_sizes():
    rng = np.random.default_rng(0)
    scenes = [synthetic.draw_scene(rng, (96, 96), cluttered=False)[1] for _ in range(600)]
    assert 0.05 < sum(not objects for objects in scenes) / 600 < 0.11
    sizes = [max(drawn.bbox[2:]) for objects in scenes for drawn in objects]
    assert min(sizes) <= 10 and max(sizes) >= 90


def test_same_arguments_same_bytes_other_seed_other_bytes(tmp_path):
    arguments = {"num_train": 4, "num_val": 2, "image_size": (48, 48)}
    write_synthetic_dataset(tmp_path / "a", **arguments, seed=1)
    write_synthetic_dataset(tmp_path / "b", **arguments, seed=1)
    write_synthetic_dataset(tmp_path / "c", **arguments, seed=2)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert len(a) == 8
    assert a == b
    assert all(a[name] != c[name] for name in a if name.endswith(".png"))
    assert len(set(a.values())) == 8  # train and validation images differ too


def test_rerun_replaces_a_larger_set_and_leaves_other_files(tmp_path):
    write_synthetic_dataset(tmp_path / "a", num_train=5, num_val=3, image_size=(32, 32))
    (tmp_path / "a" / "images" / "mine.png").write_bytes(b"mine")
    write_synthetic_dataset(tmp_path / "a", num_train=2, num_val=1, image_size=(32, 32))
    write_synthetic_dataset(tmp_path / "b", num_train=2, num_val=1, image_size=(32, 32))
    left = digests(tmp_path / "a")
    assert left.pop("images/mine.png")
    assert left == digests(tmp_path / "b")


def test_larger_set_contains_the_smaller_one(tmp_path):
    write_synthetic_dataset(tmp_path / "a", num_train=2, num_val=2, image_size=(32, 32))
    write_synthetic_dataset(tmp_path / "b", num_train=4, num_val=2, image_size=(32, 32))
    small, large = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert {n: d for n, d in small.items() if "train.json" not in n}.items() <= large.items()


@pytest.mark.parametrize(
    "wrong", [{"num_train": 0}, {"num_val": 0}, {"image_size": (8, 64)}, {"seed": -1}]
)
def test_impossible_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_synthetic_dataset(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_smallest_image_size_works():
    for seed in range(30):
        _, objects = synthetic.draw_scene(np.random.default_rng(seed), (16, 40), num_objects=3)
        assert objects
        for drawn in objects:
            x, y, width, height = drawn.bbox
            assert x >= 0 and y >= 0 and x + width <= 40 and y + height <= 16


def test_command(tmp_path, capsys):
    arguments = [str(tmp_path), "--num-train", "2", "--num-val", "1", "--image-size", "32", "48"]
    assert synthetic.main(arguments) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    document = json.loads(Path(lines["DATASETS.TRAIN_JSON"]).read_text())
    assert len(document["images"]) == 2
    assert (document["images"][0]["height"], document["images"][0]["width"]) == (32, 48)
    assert Path(lines["DATASETS.TEST_IMAGES"]).is_dir()
    with pytest.raises(SystemExit):
        synthetic.main([str(tmp_path), "--num-train", "0"])
