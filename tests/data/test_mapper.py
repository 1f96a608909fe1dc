from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from PIL import Image

from tests.data.records import as_comparable, make_record
from tests.small import default_cfg
from yolof_d2.data import build_mapper
from yolof_d2.errors import DataError


def make_cfg(*overrides: object) -> CfgNode:
    return default_cfg("INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.MIN_SIZE_TEST", 60, *overrides)


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("crop", [False, True])
def test_without_shift_it_is_detectron2s_mapper(photo, crop):
    cfg = make_cfg("INPUT.CROP.ENABLED", crop)
    record = make_record(photo, [[5.0, 10.0, 30.0, 20.0], [50.0, 30.0, 29.0, 29.0]], (60, 80))
    results = []
    for mapper in (DatasetMapper(cfg, True), build_mapper(cfg, True)):
        np.random.seed(5)
        results.append([as_comparable(mapper(record)) for _ in range(4)])
    assert results[0] == results[1]
    if crop:
        np.random.seed(5)
        cfg.INPUT.CROP.ENABLED = False
        assert as_comparable(build_mapper(cfg, True)(record)) != results[1][0]


@pytest.mark.parametrize(
    "crop", [("INPUT.JITTER_CROP.RATIO", 0.3), ("INPUT.CROP.ENABLED", True)], ids=lambda c: c[0]
)
def test_what_a_crop_cut_off_does_not_come_back_on_the_padding(tmp_path, crop):
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "box.png")
    cfg = make_cfg(*crop, "INPUT.FIXED_SIZE.TRAIN", (60, 80))
    cfg.INPUT.CROP.update(SIZE=[1.0, 0.5], TYPE="relative")
    cfg.INPUT.RANDOM_SHIFT.update(PROB=1.0, MAX_PIXELS=40)
    mapper = build_mapper(cfg, True)
    record = make_record(tmp_path / "box.png", [[0.0, 0.0, 20.0, 60.0]], (60, 80))
    num_boxes = set()
    for seed in range(80):
        np.random.seed(seed)
        mapped = mapper(record)
        boxes = mapped["instances"].gt_boxes.tensor.tolist()
        num_boxes.add(len(boxes))
        rows, columns = torch.nonzero(mapped["image"][0] > 127, as_tuple=True)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
        for box in boxes:
            if len(rows) == 0:
                assert min(box[2] - box[0], box[3] - box[1]) < 1  # a sliver
            else:
                np.testing.assert_allclose(box, seen, atol=1)
        assert boxes or not seen
    assert num_boxes == {0, 1}  # both cases came up


@pytest.mark.parametrize("kind", [int, float])
def test_boxes_of_whole_numbers_are_resized_exactly(photo, kind):
    cfg = make_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (40,), "none"
    record = make_record(photo, [[kind(side) for side in (7, 4, 25, 24)]], (60, 80))
    (box,) = build_mapper(cfg, is_train=True)(record)["instances"].gt_boxes.tensor.tolist()
    # 60 x 80 becomes 40 x 53: sides times 53 / 80 across, 2 / 3 down.
    assert box == pytest.approx([7 * 53 / 80, 4 * 2 / 3, 32 * 53 / 80, 28 * 2 / 3], abs=1e-4)


def test_image_without_annotations(photo):
    mapped = build_mapper(make_cfg(), True)(make_record(photo, [], (60, 80)))
    assert mapped["instances"].gt_boxes.tensor.shape == (0, 4)
    assert mapped["instances"].gt_classes.dtype == torch.int64


def test_greyscale_and_transparent_images_get_three_channels(tmp_path):
    for mode, value in (("L", 7), ("RGBA", (7, 7, 7, 100)), ("P", 7)):
        Image.new(mode, (80, 60), value).save(tmp_path / f"{mode}.png")
        record = make_record(tmp_path / f"{mode}.png", [[0, 0, 5, 5]], (60, 80))
        mapped = build_mapper(make_cfg(), True)(record)
        assert mapped["image"].shape == (3, 60, 80)
        assert mapped["image"].dtype == torch.uint8


def test_test_time_keeps_no_annotations_and_never_shifts(photo):
    cfg = make_cfg("INPUT.RANDOM_SHIFT.PROB", 1.0)
    record = make_record(photo, [[5, 10, 30, 20]], (60, 80))
    mapped = build_mapper(cfg, False)(record)
    assert "annotations" not in mapped and "instances" not in mapped
    with Image.open(photo) as image:
        expected = np.asarray(image)[:, :, ::-1].transpose(2, 0, 1)  # BGR
    np.testing.assert_array_equal(mapped["image"].numpy(), expected)


def test_fixed_sizes_do_not_keep_the_aspect_ratio(photo):
    cfg = make_cfg("INPUT.RANDOM_FLIP", "none")
    cfg.INPUT.FIXED_SIZE.update(TRAIN=(50, 30), TEST=(20, 70))
    record = make_record(photo, [[8.0, 12.0, 16.0, 24.0]], (60, 80))
    mapped = build_mapper(cfg, True)(record)
    assert mapped["image"].shape == (3, 50, 30)
    (box,) = mapped["instances"].gt_boxes.tensor.tolist()
    assert box == pytest.approx([3, 10, 9, 30])
    mapped = build_mapper(cfg, False)(record)
    assert mapped["image"].shape == (3, 20, 70)
    assert (mapped["height"], mapped["width"]) == (60, 80)  # detections are scaled back to these


def test_the_record_is_not_modified(photo):
    record = make_record(photo, [[5, 10, 30, 20]], (60, 80))
    before = copy.deepcopy(record)
    build_mapper(make_cfg(), True)(record)
    assert record == before


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(s, d) for s in ("png", "jpg") for d in ("cut", "text", "empty")] + [("png", "chunk")],
)
def test_corrupt_image_is_named(tmp_path, photo, suffix, damage):
    path = tmp_path / f"bad.{suffix}"
    with Image.open(photo) as image:
        image.save(path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "text": b"<html>404 Not Found</html>",
            "empty": b"",
            "chunk": content[:35] + b"\0" + content[36:],  # Pillow raises a SyntaxError
        }[damage]
    )
    with pytest.raises(DataError, match=r"bad\.\w+'.*image id 17.*cannot be read"):
        build_mapper(make_cfg(), True)(make_record(path, [[0, 0, 5, 5]], (60, 80)))


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png'.*image id 17.*does not exist"):
        build_mapper(make_cfg(), False)(make_record(tmp_path / "gone.png", [], (60, 80)))


def test_wrong_size_in_the_json_is_told_with_both_sizes(photo):
    with pytest.raises(DataError, match=r"photo\.png'.*80 x 60.*json says 60 x 80"):
        build_mapper(make_cfg(), True)(make_record(photo, [], (80, 60)))


def test_other_errors_are_not_blamed_on_the_image(photo):
    mapper = build_mapper(make_cfg(), True)

    def broken(_: object) -> None:
        raise ValueError("fault of the augmentation")

    mapper.augmentations = broken
    with pytest.raises(ValueError, match="fault of the augmentation") as caught:
        mapper(make_record(photo, [], (60, 80)))
    assert not isinstance(caught.value, DataError)


def test_data_error_keeps_its_type_through_a_loader_worker(tmp_path):
    mapper = build_mapper(make_cfg(), True)
    records = [make_record(tmp_path / "gone.png", [], (60, 80))]

    class Mapped(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, Any]:
            return mapper(records[index])

    loader = torch.utils.data.DataLoader(Mapped(), num_workers=1, collate_fn=list)
    with pytest.raises(DataError, match=r"gone\.png"):
        next(iter(loader))
