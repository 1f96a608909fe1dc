from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from tests.small import load, write_config
from yolof_d2.data import build_mapper, build_train_loader, stream
from yolof_d2.data.stream import extend_word, iter_batches, seed_step
from yolof_d2.errors import ConfigError, DataError


def cut_slowly(indices: Iterator[int], size: int, wide: np.ndarray, count: int) -> list[list]:
    """The first batches, one image after another."""
    filling: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    batches = []
    for place, index in enumerate(indices):
        batch = filling[bool(wide[index])]
        batch.append((place, index))
        if len(batch) == size:
            batches.append(batch.copy())
            batch.clear()
        if len(batches) == count:
            return batches
    raise AssertionError("the sampler has an end")


@given(st.data(), st.integers(1, 9), st.integers(1, 20), st.integers(1, 7))
def test_batches_are_those_of_a_loop_from_any_start(data, size, start, chunk):
    wide = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=30)))
    sampler = TrainingSampler(len(wide), seed=1)
    expected = cut_slowly(sampler._infinite_indices(), size, wide, start + 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_CHUNK", chunk)
        found = iter_batches(sampler._infinite_indices(), size, wide=wide, start=start)
        assert list(itertools.islice(found, 5)) == expected[start:]


@given(st.integers(1, 9), st.integers(0, 20))
def test_without_groups_batches_are_slices(size, start):
    found = list(itertools.islice(iter_batches(itertools.count(), size, start=start), 3))
    flat = [(i, i) for i in range(start * size, (start + 3) * size)]
    assert list(chain(*found)) == flat


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config of 30 images."""
    return Path(write_config(tmp_path_factory.mktemp("stream"), 30, 2))


class SubsetOfHalf(RandomSubsetTrainingSampler):
    def __init__(self, images):
        super().__init__(len(images), 0.5, seed_shuffle=1, seed_subset=1)


def cfg_of(config: Path, *overrides: object) -> CfgNode:
    shift = ["INPUT.RANDOM_SHIFT.PROB", 0.5, "SEED", 3, "SOLVER.IMS_PER_BATCH", 8]
    return load(config, *shift, *overrides)


def see(cfg: CfgNode, batches: int = 6, *, start: int = 0, rank: int = 0, ranks: int = 1, **own):
    """Place -> what the model sees of it, and the batches of a rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.comm, "get_rank", lambda: rank)
        patch.setattr(stream.comm, "get_world_size", lambda: ranks)
        patch.setattr(stream.comm, "all_gather", lambda value: [value] * ranks)
        loader = build_train_loader(cfg, **own)
        loader.batch_sampler.start = start
        found = list(itertools.islice(loader, batches))
    return [[(s["ordinal"], s["image_id"], s["digest"]) for s in batch] for batch in found]


@pytest.mark.parametrize("mosaic", [0.0, 0.5])
def test_the_stream_is_the_same_for_any_workers_ranks_start_and_past(config, mosaic):
    own = ("INPUT.MOSAIC.PROB", mosaic, "INPUT.MOSAIC.SIZE", [64, 64])
    expected = see(cfg_of(config, *own))
    assert len({digest for batch in expected for *_, digest in batch}) > 40  # of 30 images
    for workers in (1, 2, 4):
        np.random.rand(3), torch.rand(3), random.random()
        assert see(cfg_of(config, *own, "DATALOADER.NUM_WORKERS", workers)) == expected
    for ranks in (2, 4):
        parts = [see(cfg_of(config, *own), rank=rank, ranks=ranks) for rank in range(ranks)]
        assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == expected
    assert see(cfg_of(config, *own), 2, start=4) == expected[4:]
    assert see(cfg_of(config, *own, "SEED", 4)) != expected


def test_so_it_is_with_repeated_images(config):
    own = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    own += ("DATALOADER.REPEAT_THRESHOLD", 2.0)
    expected = see(cfg_of(config, *own))
    np.random.rand(3)
    parts = [see(cfg_of(config, *own), rank=rank, ranks=2) for rank in range(2)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == expected
    assert see(cfg_of(config, *own), 1, start=5) == expected[5:]


@pytest.mark.parametrize("kind", [RandomSampler, SubsetOfHalf])
def test_so_it_is_with_a_sampler_of_ones_own(config, kind):
    def sampler():
        return kind(range(len(build_train_loader(cfg_of(config)).dataset)))

    expected = see(cfg_of(config), sampler=sampler())
    torch.rand(3)
    assert see(cfg_of(config), 2, start=4, sampler=sampler()) == expected[4:]
    assert expected != see(cfg_of(config))


class Noise(T.Augmentation):
    """Adds a number from one of many generators to the image."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def get_transform(self, image):
        return T.BlendTransform(np.full_like(image, self.draw()), 0.5, 0.5)


OWN = np.random.default_rng(0)
DRAWS = {
    "random": lambda: random.randrange(256),
    "numpy": lambda: np.random.randint(256),
    "torch": lambda: int(torch.randint(256, ())),
}


def with_noise(cfg: CfgNode, augmentation: T.Augmentation):
    mapper = build_mapper(cfg, True)
    mapper.augmentations.augs.append(augmentation)
    return mapper


@pytest.mark.parametrize("name", DRAWS)
def test_an_augmentation_of_the_user_takes_part_without_knowing(config, name):
    cfg = cfg_of(config)
    expected = see(cfg, mapper=with_noise(cfg, Noise(DRAWS[name])))
    assert expected != see(cfg)
    DRAWS[name]()
    assert see(cfg, 2, start=4, mapper=with_noise(cfg, Noise(DRAWS[name]))) == expected[4:]


@pytest.mark.parametrize("generator", [
    random.Random(), np.random.RandomState(), np.random.default_rng(), torch.Generator()
], ids=lambda each: type(each).__name__)  # fmt: skip
def test_so_does_one_with_a_generator_of_its_own(config, generator):
    class Own(Noise):
        def __init__(self):
            T.Augmentation.__init__(self)
            self.nested = {"generator": [generator]}

        def draw(self):
            own = self.nested["generator"][0]
            if isinstance(own, torch.Generator):
                return int(torch.randint(256, (), generator=own))
            return int(own.random() * 256)

    cfg = cfg_of(config)
    expected = see(cfg, mapper=with_noise(cfg, Own()))
    assert expected != see(cfg)
    assert see(cfg, 2, start=4, mapper=with_noise(cfg, Own())) == expected[4:]


def test_one_whose_generator_no_seed_reaches_is_refused_by_name(config):
    cfg = cfg_of(config)
    mapper = with_noise(cfg, Noise(lambda: OWN.integers(256)))
    with pytest.raises(ConfigError, match=r"Noise gives the same image another look each time"):
        build_train_loader(cfg, mapper=mapper)


def test_an_image_that_the_mapper_refuses_is_replaced_by_the_same_other(config):
    cfg = cfg_of(config)

    def mapper(record):
        return build(record) if record["image_id"] % 2 else None

    build = build_mapper(cfg, True)
    expected = see(cfg, mapper=mapper)
    assert {image % 2 for batch in expected for _, image, _ in batch} == {1}
    assert see(cfg, 2, start=4, mapper=mapper) == expected[4:]
    with pytest.raises(DataError, match="returned None for image"):
        see(cfg, mapper=lambda _: None)


def test_reading_a_sample_leaves_the_generators_as_they_were(config):
    loader = build_train_loader(cfg_of(config))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    next(iter(loader))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_what_a_model_draws_depends_on_seed_iteration_and_rank_alone(monkeypatch):
    def drawn(*key: int, rank: int = 0):
        monkeypatch.setattr(stream.comm, "get_rank", lambda: rank)
        seed_step(*key)
        return random.random(), np.random.rand(), torch.rand(1).item()

    expected = drawn(1, 7)
    assert drawn(1, 7) == expected
    others = [drawn(1, 8), drawn(2, 7), drawn(1, 7, rank=1)]
    assert len({expected, *others}) == 4


def test_a_word_knows_the_order_and_not_how_it_was_cut():
    word = extend_word(extend_word(0, [1, 2]), [3, 4])
    assert word == extend_word(extend_word(0, [1, 2]), [3, 4]) < 2**48
    assert word != extend_word(extend_word(0, [3, 4]), [1, 2])


def test_the_fingerprint_changes_with_any_box_and_not_with_the_folder(config, tmp_path):
    dataset = build_train_loader(cfg_of(config)).dataset
    text = config.read_text()
    moved = tmp_path / "data"
    moved.symlink_to(config.parent / "data")
    (tmp_path / "model.yaml").write_text(text.replace(str(config.parent / "data"), str(moved)))
    other = build_train_loader(cfg_of(tmp_path / "model.yaml")).dataset
    assert dataset.fingerprint == other.fingerprint
    json_file = moved / "annotations" / "instances_train.json"
    changed = json_file.read_text().replace('"category_id": 1', '"category_id": 2', 1)
    (tmp_path / "changed.json").write_text(changed)
    cfg = cfg_of(config, "DATASETS.TRAIN_JSON", tmp_path / "changed.json")
    assert build_train_loader(cfg).dataset.fingerprint != dataset.fingerprint
