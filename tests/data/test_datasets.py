from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from tests.small import data_keys, default_cfg, write_data
from yolof_d2.data import datasets, register_datasets, resolve_datasets
from yolof_d2.errors import ConfigError, DataError

TWO_CLASSES = {3: "cat", 7: "dog"}


def write_json(path: Path, categories: dict[int, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = TWO_CLASSES if categories is None else categories
    first = next(iter(categories), 1)
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": first, "bbox": [1, 2, 3, 4], "iscrowd": 0}
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }
    path.write_text(json.dumps(document))
    return path


def make_cfg(**paths: object) -> CfgNode:
    cfg = default_cfg()
    cfg.DATASETS.update({key: str(value) for key, value in paths.items()})
    return cfg


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh current folder with train.json, test.json and images/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    write_json(tmp_path / "train.json")
    write_json(tmp_path / "test.json")
    (tmp_path / "images").mkdir()
    return tmp_path


TRAIN = {"TRAIN_JSON": "train.json", "TRAIN_IMAGES": "images"}
TEST = {"TEST_JSON": "test.json", "TEST_IMAGES": "images"}
BOTH = TRAIN | TEST


def test_two_paths_are_enough_for_detectron2_to_load_the_data(tmp_path, caplog):
    cfg = default_cfg(*data_keys(write_data(tmp_path, num_train=6)))
    with caplog.at_level(logging.INFO, logger="yolof_d2"):
        resolve_datasets(cfg)
    assert "NUM_CLASSES = 3" in caplog.text
    assert (cfg.MODEL.YOLOF.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES) == (3, 3)
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    assert len(records) == 6
    assert all(os.path.isfile(record["file_name"]) for record in records)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    DatasetCatalog.get(cfg.DATASETS.TEST[0])
    assert metadata.thing_classes == ["circle", "square", "triangle"]
    assert metadata.evaluator_type == "coco"


def test_without_paths_nothing_changes():
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    before = cfg.dump()
    names = set(DatasetCatalog.list())
    register_datasets(cfg)
    resolve_datasets(cfg)
    assert cfg.dump() == before
    assert set(DatasetCatalog.list()) == names


def test_names_are_readable_and_depend_on_the_paths_as_given(folder):
    cfg = make_cfg(**BOTH)
    resolve_datasets(cfg)
    (train,), (test,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert train.startswith("train_") and len(train) == len("train_") + 8
    assert train != test
    # Same stem in another folder, and same json with other images.
    write_json(folder / "other" / "train.json")
    (folder / "images2").mkdir()
    for changed in ({"TRAIN_JSON": "other/train.json"}, {"TRAIN_IMAGES": "images2"}):
        other = make_cfg(**{**BOTH, **changed})
        resolve_datasets(other)
        assert other.DATASETS.TRAIN[0] != train
        assert train in DatasetCatalog and other.DATASETS.TRAIN[0] in DatasetCatalog


def test_registering_again_is_harmless_and_works_on_a_frozen_config(folder):
    cfg = make_cfg(**BOTH)
    resolve_datasets(cfg)
    DatasetCatalog.get(cfg.DATASETS.TRAIN[0])  # fills in metadata that must not clash
    resolve_datasets(cfg)
    cfg.freeze()
    register_datasets(cfg)
    register_datasets(cfg)
    assert len(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])) == 1


def test_a_changed_json_is_seen(folder):
    cfg = make_cfg(**TRAIN)
    resolve_datasets(cfg)
    DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    write_json(folder / "train.json", {1: "cat", 2: "dog", 3: "elephant"})
    resolve_datasets(cfg)
    DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    assert cfg.MODEL.YOLOF.NUM_CLASSES == 3
    assert len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes) == 3


def test_same_relative_path_in_another_folder_leads_there(folder, monkeypatch):
    cfg = make_cfg(**TRAIN)
    resolve_datasets(cfg)
    shutil.copytree(folder / "images", folder / "elsewhere" / "images")
    write_json(folder / "elsewhere" / "train.json")
    monkeypatch.chdir(folder / "elsewhere")
    register_datasets(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    assert metadata.json_file == str(folder / "elsewhere" / "train.json")


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
@pytest.mark.parametrize("given", ["JSON", "IMAGES"])
def test_json_and_images_belong_together(folder, split, given):
    cfg = make_cfg(**{f"{split}_{given}": "train.json"})
    for function in (register_datasets, resolve_datasets):
        with pytest.raises(ConfigError, match=rf"DATASETS\.{split}_{given} is set.*is empty"):
            function(cfg)


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ({3: "cat", 7: "cow"}, r"category id 7: 'dog' in .*train\.json.*'cow' in .*test\.json"),
        ({3: "cat", 8: "dog"}, r"(?s)id 7: 'dog'.*'\(absent\)'.*id 8: '\(absent\)'"),
        ({3: "cat"}, r"id 7: 'dog'.*'\(absent\)'"),
    ],
)
def test_train_and_test_must_have_the_same_classes(folder, categories, told):
    write_json(folder / "test.json", categories)
    with pytest.raises(DataError, match=told):
        resolve_datasets(make_cfg(**BOTH))


def test_order_of_the_categories_does_not_matter(folder):
    file = write_json(folder / "test.json", dict(reversed(TWO_CLASSES.items())))
    assert list(datasets.read_categories(str(file)).items()) == [(3, "cat"), (7, "dog")]
    cfg = make_cfg(**BOTH)
    resolve_datasets(cfg)
    for (name,) in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST):
        DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]


def test_long_list_of_differences_is_shortened(folder):
    write_json(folder / "test.json", {i: f"c{i}" for i in range(100, 140)})
    with pytest.raises(DataError, match=r"\.\.\. and 32 more"):
        resolve_datasets(make_cfg(**BOTH))


def test_own_training_data_with_built_in_test_data_of_other_classes(folder):
    cfg = make_cfg(**TRAIN)
    cfg.DATASETS.TEST = ("coco_2017_val",)
    message = r"(?s)coco_2017_val\) \(80\) differ.*Set DATASETS.TEST_JSON"
    with pytest.raises(DataError, match=message):
        resolve_datasets(cfg)
    cfg.DATASETS.TEST = ("voc_2007_test",)  # knows class names but no category ids
    with pytest.raises(DataError, match="voc_2007_test"):
        resolve_datasets(cfg)
    cfg.DATASETS.TEST = ()
    resolve_datasets(cfg)


def test_own_training_data_with_built_in_test_data_of_the_same_classes(folder):
    coco = MetadataCatalog.get("coco_2017_val")
    ids = coco.thing_dataset_id_to_contiguous_id
    write_json(folder / "train.json", {i: coco.thing_classes[ids[i]] for i in ids})
    cfg = make_cfg(**TRAIN)
    cfg.DATASETS.TEST = ("coco_2017_val",)
    resolve_datasets(cfg)
    assert cfg.DATASETS.TEST == ("coco_2017_val",)
    assert cfg.MODEL.YOLOF.NUM_CLASSES == 80


def test_own_test_data_with_built_in_training_data_is_fine_for_evaluation_only(folder):
    cfg = make_cfg(**TEST)
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(DataError, match="coco_2017_train"):
        resolve_datasets(cfg.clone())
    resolve_datasets(cfg, eval_only=True)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)


def test_evaluation_only_does_without_the_training_files(folder, caplog):
    cfg = make_cfg(**BOTH)
    (folder / "train.json").unlink()
    with pytest.raises(DataError, match="TRAIN_JSON"):
        resolve_datasets(cfg.clone())
    resolve_datasets(cfg, eval_only=True)
    register_datasets(cfg, eval_only=True)
    assert cfg.MODEL.YOLOF.NUM_CLASSES == 2
    assert "TRAIN_JSON" in caplog.text
    (folder / "test.json").unlink()
    with pytest.raises(DataError, match="TEST_JSON"):
        resolve_datasets(cfg, eval_only=True)


def test_relative_paths_current_folder_first_then_the_data_root(folder, monkeypatch):
    root = folder / "root"
    write_json(root / "train.json", {1: "one"})
    write_json(root / "only_there.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    find = datasets.find_data_path
    assert find("train.json", key="k") == str(folder / "train.json")
    assert find("only_there.json", key="k") == str(root / "only_there.json")
    assert find(str(root / "train.json"), key="k") == str(root / "train.json")
    (folder / "datasets").mkdir()
    write_json(folder / "datasets" / "default.json")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert find("default.json", key="k") == str(folder / "datasets" / "default.json")


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert datasets.find_data_path("~/train.json", key="k") == str(folder / "train.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/images")
    write_json(folder / "images" / "x.json")
    assert datasets.find_data_path("x.json", key="k") == str(folder / "images" / "x.json")


def test_missing_path_lists_the_places(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    with pytest.raises(DataError) as caught:
        resolve_datasets(make_cfg(**{**BOTH, "TRAIN_JSON": "gone.json"}))
    for expected in ("DATASETS.TRAIN_JSON", str(folder / "gone.json"), "/data/sets/gone.json"):
        assert expected in str(caught.value)


def test_categories_are_read_once_per_file(folder, monkeypatch):
    reads = []
    original = datasets.read_coco_json
    monkeypatch.setattr(datasets, "read_coco_json", lambda p: reads.append(p) or original(p))
    for _ in range(3):
        resolve_datasets(make_cfg(**BOTH))
    assert sorted(os.path.basename(path) for path in reads) == ["test.json", "train.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid json"),
        ("[]", "not in COCO format"),
        ("{}", "no 'categories'"),
        ('{"categories": []}', "no 'categories'"),
        ('{"categories": [{"id": "1", "name": "a"}]}', "whole number"),
        ('{"categories": [{"id": 1}]}', "each category must be like"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "more than once"),
    ],
)
def test_unusable_json_is_told_with_its_path(folder, content, told):
    (folder / "train.json").write_text(content)
    with pytest.raises(DataError, match=told) as caught:
        resolve_datasets(make_cfg(**TRAIN))
    assert str(folder / "train.json") in str(caught.value)
