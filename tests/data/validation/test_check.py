from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from tests.data.validation.good import GOOD, annotation, edited, many_faults, without
from tests.small import default_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.validation import REPORT_NAME, check, check_datasets
from yolof_d2.errors import DataError


def make_cfg(folder: Path, train: object = GOOD, test: object = GOOD) -> CfgNode:
    cfg = default_cfg("OUTPUT_DIR", str(folder / "output"), "MODEL.META_ARCHITECTURE", "YOLOF")
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
    report = (folder / "output" / REPORT_NAME).read_text()
    assert report.count("category_id 9") == 47
    assert "test.json" in report


def test_check_datasets_only_logs_warnings_and_removes_an_old_report(folder, caplog):
    cfg = make_cfg(folder, edited(annotation(bbox=[1, 2, 0, 4])))
    (problem,) = check_datasets(cfg)
    assert problem.kind == "empty_box"
    assert "has no size" in caplog.text
    report = folder / "output" / REPORT_NAME
    assert "has no size" in report.read_text()
    check_datasets(make_cfg(folder))
    assert not report.exists()


def test_check_datasets_can_leave_out_training_data(folder):
    bad = edited(annotation(bbox=None))
    assert check_datasets(make_cfg(folder, train=bad), skip_train=True) == []
    with pytest.raises(DataError):
        check_datasets(make_cfg(folder, test=bad), skip_train=True)


def test_check_datasets_reads_headers_of_small_sets_only(folder, monkeypatch):
    cfg = make_cfg(folder)
    (folder / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable_image"):
        check_datasets(cfg)
    monkeypatch.setattr(check, "HEADER_CHECK_MAX_IMAGES", 2)
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
