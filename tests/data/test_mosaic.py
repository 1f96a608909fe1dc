from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.records import Record, as_comparable, make_record
from tests.small import default_cfg
from yolof_d2.data import build_mapper, build_mosaic_mapper
from yolof_d2.data.mosaic import MosaicMapper, TileMapper
from yolof_d2.engine import Trainer
from yolof_d2.errors import ConfigError, DataError


def make_cfg(*overrides: object) -> CfgNode:
    own = ["INPUT.MOSAIC.PROB", 1.0, "INPUT.MOSAIC.SIZE", (64, 48), "INPUT.MIN_SIZE_TRAIN", (48,)]
    return default_cfg(*own, "DATALOADER.NUM_WORKERS", 0, *overrides)


def make_mosaic(
    mapper: Callable[[Record], Record], dataset: Sequence[Record], **options: object
) -> MosaicMapper:
    defaults = {"prob": 1.0, "size": (8, 10), "center_range": (0.2, 0.8)}
    return MosaicMapper(mapper, dataset, **{**defaults, **options})


# The geometry, with tiles made up by the test instead of read and augmented.


def tile(
    image_id: int,
    size: tuple[int, int],
    content: tuple[int, int, int, int] | None = None,
    boxes: Sequence[Sequence[float]] = (),
) -> Record:
    """Return a sample as the mapper does, whose pixels tell their image, row and column."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((torch.full_like(rows, 10 + image_id), rows, columns))
    instances = Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.arange(len(boxes)) + 100 * image_id,
    )
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "height": 10 * height,
        "width": 10 * width,
        "image": image.to(torch.uint8),
        "instances": instances,
        "content_box": list(content or (0, 0, width, height)),
    }


@st.composite
def tiles(draw: st.DrawFn, image_id: int) -> Record:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))

    def interval(length: int) -> tuple[int, int]:
        first, second = draw(st.integers(0, length)), draw(st.integers(0, length))
        return min(first, second), max(first, second)  # may be empty

    content = tuple(zip(interval(width), interval(height), strict=True))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        (x0, x1), (y0, y1) = interval(width), interval(height)
        if x0 < x1 and y0 < y1:
            boxes.append([float(v) for v in (x0, y0, x1, y1)])
    return tile(image_id, (height, width), content[0] + content[1], boxes)


def source_pixel(
    sample: Record, index: int, y: int, x: int, cut: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the pixel of tile ``index`` at (y, x) of the canvas, counted from the outer corner."""
    x0, y0, x1, y1 = sample["content_box"]
    is_right, is_bottom = index % 2 == 1, index >= 2
    if (x >= cut[1]) != is_right or (y >= cut[0]) != is_bottom:
        return None
    column = x1 - (size[1] - x) if is_right else x0 + x
    row = y1 - (size[0] - y) if is_bottom else y0 + y
    return (row, column) if y0 <= row < y1 and x0 <= column < x1 else None


@settings(deadline=None, max_examples=200)
@given(
    *(tiles(image_id) for image_id in range(4)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([0.1, 0.5, 0.75]),
    st.integers(0, 2**32 - 1),
)
def test_agrees_with_a_loop_over_pixels(first, second, third, fourth, size, center, seed):
    known = [first, second, third, fourth]
    mapper = make_mosaic(
        lambda record: copy.deepcopy(known[record["image_id"]]),
        [{"image_id": image_id} for image_id in range(4)],
        size=size,
        center_range=(center, center),
    )
    np.random.seed(seed)
    sample = mapper({"image_id": 0})

    assert sample.keys() == {*first, "mosaic_image_ids"} - {"content_box"}
    assert all(sample[key] == first[key] for key in ("image_id", "file_name", "height", "width"))
    assert sample["mosaic_image_ids"][0] == 0
    cut = (round(center * size[0]), round(center * size[1]))
    expected = torch.zeros(3, *size, dtype=torch.uint8)
    boxes, classes = [], []
    for index, image_id in enumerate(sample["mosaic_image_ids"]):
        origin = known[image_id]
        places = {}
        for y in range(size[0]):
            for x in range(size[1]):
                pixel = source_pixel(origin, index, y, x, cut, size)
                if pixel is not None:
                    places[pixel] = (y, x)
                    expected[:, y, x] = origin["image"][:, pixel[0], pixel[1]]
        for box, label in zip(
            origin["instances"].gt_boxes.tensor.tolist(),
            origin["instances"].gt_classes.tolist(),
            strict=True,
        ):
            covered = [
                place
                for (row, column), place in places.items()
                if box[0] <= column < box[2] and box[1] <= row < box[3]
            ]
            if covered:
                ys, xs = zip(*covered, strict=True)
                boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
                classes.append(label)
    assert sample["image"].dtype == torch.uint8
    assert torch.equal(sample["image"], expected)
    assert sample["instances"].image_size == size
    assert sample["instances"].gt_boxes.tensor.tolist() == boxes
    assert sample["instances"].gt_classes.tolist() == classes
    assert sample["instances"].gt_classes.dtype == torch.int64


def test_partners_come_from_the_whole_data_set_and_the_cut_from_its_whole_range():
    np.random.seed(0)
    whole = (0, 0, 100, 100)
    mapper = make_mosaic(
        lambda record: tile(record["image_id"], (100, 100), whole),
        [{"image_id": image_id} for image_id in range(5)],
        size=(40, 50),
    )
    partners, cuts = [], []
    for _ in range(1000):
        sample = mapper({"image_id": 9})
        partners.append(sample["mosaic_image_ids"][1:])
        is_first = sample["image"][0] == 19
        cuts.append((int(is_first[:, 0].sum()), int(is_first[0].sum())))
    partners_array = np.array(partners)
    for column in partners_array.T:
        counts = np.bincount(column, minlength=5)
        assert (np.abs(counts - 200) < 51).all()  # 4 standard deviations
    for a, b in ((0, 1), (0, 2), (1, 2)):  # drawn independently
        assert len(set(zip(partners_array[:, a], partners_array[:, b], strict=True))) == 25
    assert {y for y, _ in cuts} == set(range(8, 33))
    assert {x for _, x in cuts} == set(range(10, 41))
    assert abs(np.corrcoef(np.array(cuts).T)[0, 1]) < 0.13  # not one number for both


def test_probability_is_kept_and_single_images_are_the_mappers():
    np.random.seed(0)
    single = tile(3, (4, 4), None, [[0, 0, 1, 1]])
    mapper = make_mosaic(lambda record: dict(single), [{}], prob=0.3)
    samples = [mapper({}) for _ in range(2000)]
    mosaics = [sample for sample in samples if "mosaic_image_ids" in sample]
    assert abs(len(mosaics) / 2000 - 0.3) < 0.041  # 4 standard deviations
    expected = {key: value for key, value in single.items() if key != "content_box"}
    assert next(sample for sample in samples if "mosaic_image_ids" not in sample) == expected


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"prob": -0.1}, "PROB"),
        ({"prob": 1.5}, "PROB"),
        ({"size": ()}, "SIZE"),
        ({"size": (0, 640)}, "SIZE"),
        ({"center_range": (0.0, 0.5)}, "CENTER_RANGE"),
        ({"center_range": (0.5, 1.0)}, "CENTER_RANGE"),
        ({"center_range": (0.6, 0.4)}, "CENTER_RANGE"),
    ],
)
def test_impossible_values_are_refused(options, key):
    with pytest.raises(ConfigError, match=rf"INPUT\.MOSAIC\.{key} must .*got"):
        make_mosaic(dict, [], **options)


# From files on.

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]  # RGB


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> list[Record]:
    """Grey images with one rectangle each, whose colour tells its class."""
    folder = tmp_path_factory.mktemp("mosaic")
    random = np.random.default_rng(0)
    records = []
    for label, color in enumerate(COLORS):
        height, width = random.integers(40, 90, 2).tolist()
        x, y = random.integers(0, 15, 2).tolist()
        pixels = np.full((height, width, 3), 128, np.uint8)
        pixels[y : y + 24, x : x + 24] = color
        Image.fromarray(pixels).save(folder / f"{label}.png")
        path, boxes = folder / f"{label}.png", [[float(x), float(y), 24.0, 24.0]]
        record = make_record(path, boxes, (height, width), image_id=50 + label, label=label)
        records.append(record)
    return records


GEOMETRY = (
    *("INPUT.JITTER_CROP.RATIO", 0.3),
    *("INPUT.FIXED_SIZE.TRAIN", (64, 48)),
    *("INPUT.FIXED_SIZE.SCALE_JITTER", (0.8, 1.2)),
    *("INPUT.RANDOM_SHIFT.PROB", 0.5),
    *("INPUT.RANDOM_SHIFT.MAX_PIXELS", 8),
)


@pytest.mark.parametrize("overrides", [(), GEOMETRY], ids=["off", "on"])
def test_every_painted_object_lies_in_its_box(dataset, overrides):
    mapper = build_mosaic_mapper(make_cfg("INPUT.FORMAT", "RGB", *overrides), dataset)
    seen_counts = []
    for seed in range(60):
        np.random.seed(seed)
        sample = mapper(dataset[seed % len(dataset)])
        assert sample["image"].shape == (3, 64, 48)
        image = sample["image"].numpy().astype(int).transpose(1, 2, 0)
        instances = sample["instances"]
        boxes = instances.gt_boxes.tensor.numpy()
        labels = instances.gt_classes.tolist()
        seen_counts.append(len(labels))
        assert (boxes >= 0).all() and (boxes <= [48, 64, 48, 64]).all()

        for label, color in enumerate(COLORS):
            # Nearer to the colour than to grey, black and the other colours.
            painted = np.abs(image - color).sum(axis=2) < 120
            allowed = np.zeros_like(painted)
            for box, box_label in zip(boxes, labels, strict=True):
                if box_label != label:
                    continue
                x0, y0 = np.floor(box[:2]).astype(int)
                x1, y1 = np.ceil(box[2:]).astype(int)
                allowed[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
                if (box[2:] - box[:2]).min() >= 4:  # tight: seen at each side, within a pixel
                    rows, columns = np.nonzero(painted[y0:y1, x0:x1])
                    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    np.testing.assert_allclose(np.array(edges) + [x0, y0, x0, y0], box, atol=1.5)
            assert not (painted & ~allowed).any()
    assert min(seen_counts) < 4 == max(seen_counts)


def test_content_box_is_where_the_image_is(dataset):
    mapper = TileMapper(
        make_cfg(),
        True,
        augmentations=build_mosaic_mapper(make_cfg(*GEOMETRY), []).mapper.augmentations.augs,
    )
    differs = 0
    for seed in range(60):
        np.random.seed(seed)
        sample = mapper(dataset[seed % len(dataset)])
        rows, columns = torch.nonzero(sample["image"].amax(dim=0) > 60, as_tuple=True)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(np.array(seen), sample["content_box"], atol=1)
        differs += sample["content_box"] != [0, 0, *sample["image"].shape[:0:-1]]
    assert differs > 30


def test_the_same_seed_gives_the_same_sample_whatever_came_before(dataset):
    cfg = make_cfg(*GEOMETRY, "INPUT.MOSAIC.PROB", 0.5, "INPUT.COLOR_DISTORTION.PROB", 1.0)
    mapper, other = build_mosaic_mapper(cfg, dataset), build_mosaic_mapper(cfg, dataset)
    is_mosaic = set()
    for seed in range(10):
        np.random.seed(seed)
        expected = as_comparable(mapper(dataset[1]))
        is_mosaic.add("mosaic_image_ids" in expected)
        other(dataset[seed % 5])
        np.random.seed(seed)
        assert as_comparable(other(dataset[1])) == expected
    assert is_mosaic == {False, True}


def test_records_are_not_modified(dataset):
    before = copy.deepcopy(dataset)
    mapper = build_mosaic_mapper(make_cfg(*GEOMETRY), dataset)
    for record in dataset:
        mapper(record)
    assert dataset == before


def test_without_a_mosaic_it_is_the_plain_mapper(dataset):
    cfg = make_cfg(*GEOMETRY, "INPUT.MOSAIC.PROB", 1e-9)
    mosaic, plain = build_mosaic_mapper(cfg, dataset), build_mapper(cfg, True)
    for seed in range(5):
        np.random.seed(seed)
        sample = as_comparable(mosaic(dataset[seed]))
        np.random.seed(seed)
        np.random.random()  # whether it is to be a mosaic
        assert sample == as_comparable(plain(dataset[seed]))


@pytest.mark.parametrize("count", [0, 200])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (300, 20)])
def test_one_image_of_any_size_with_any_number_of_boxes_is_enough(tmp_path, size, count):
    Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(tmp_path / "only.png")
    whole = [0.0, 0.0, float(size[1]), float(size[0])]
    record = make_record(tmp_path / "only.png", [whole] * count, size, image_id=1)
    mapper = build_mosaic_mapper(make_cfg(*GEOMETRY), [record])
    for seed in range(4):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["mosaic_image_ids"] == [1, 1, 1, 1]
        boxes = sample["instances"].gt_boxes
        assert boxes.tensor.shape[1] == 4 and boxes.nonempty().all()
        assert len(boxes) == len(sample["instances"].gt_classes) <= 4 * count
        assert len(boxes) >= count // 2


def test_crowd_regions_are_left_out(dataset):
    record = copy.deepcopy(dataset[0])
    record["annotations"][0]["iscrowd"] = 1
    sample = build_mosaic_mapper(make_cfg(), [record])(record)
    assert len(sample["instances"]) == 0


@pytest.mark.parametrize("name", ["MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"])
def test_models_that_need_more_than_boxes_are_refused(name):
    with pytest.raises(ConfigError, match=rf"MODEL\.{name} is on.*INPUT\.MOSAIC\.PROB 0"):
        build_mosaic_mapper(make_cfg(f"MODEL.{name}", True), [])


def test_a_bad_partner_is_named(dataset, tmp_path):
    gone = {**dataset[1], "file_name": str(tmp_path / "gone.png")}
    with pytest.raises(DataError, match=r"gone\.png'.*image id 51.*does not exist"):
        build_mosaic_mapper(make_cfg(), [gone])(dataset[0])


def test_a_partner_without_annotations_is_named(dataset):
    unlabelled = {key: value for key, value in dataset[1].items() if key != "annotations"}
    with pytest.raises(DataError, match=r"1\.png' has no 'annotations'"):
        build_mosaic_mapper(make_cfg(), [unlabelled])(dataset[0])


# The loader.


@pytest.fixture
def registered(dataset):
    unlabelled = {**dataset[0], "image_id": 99, "annotations": []}
    DatasetCatalog.register("mosaic_test", lambda: [unlabelled, *dataset])
    yield "mosaic_test"
    DatasetCatalog.remove("mosaic_test")


def loader_cfg(name: str, *overrides: object) -> CfgNode:
    return make_cfg("DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 2, *GEOMETRY, *overrides)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_mixes_mosaics_and_single_images(registered, workers):
    seed_all_rng(3)
    cfg = loader_cfg(registered, "INPUT.MOSAIC.PROB", 0.5, "DATALOADER.NUM_WORKERS", workers)
    batches = iter(Trainer.build_train_loader(cfg))
    samples = [sample for _ in range(20) for sample in next(batches)]
    mosaics = [sample for sample in samples if "mosaic_image_ids" in sample]
    assert 8 < len(mosaics) < 32
    assert all(sample["image"].shape == (3, 64, 48) for sample in mosaics)
    # Images without annotations are filtered, also as partners.
    ids = {image_id for sample in mosaics for image_id in sample["mosaic_image_ids"]}
    assert ids == set(range(50, 56))
    # Mosaics are spread over both groups of aspect ratio.
    assert {sample["width"] > sample["height"] for sample in mosaics} == {False, True}


def test_loader_and_mosaic_share_one_copy_of_the_data(registered):
    dataset = Trainer.build_train_loader(loader_cfg(registered)).dataset
    assert isinstance(dataset._images, DatasetFromList)
    assert dataset._mapper.dataset is dataset._images
    cfg = loader_cfg(registered, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    assert len(Trainer.build_train_loader(cfg).dataset) == 7


def test_a_negative_probability_is_not_taken_for_off(registered):
    with pytest.raises(ConfigError, match=r"INPUT\.MOSAIC\.PROB must lie in \[0, 1\], got -1"):
        Trainer.build_train_loader(loader_cfg(registered, "INPUT.MOSAIC.PROB", -1.0))
