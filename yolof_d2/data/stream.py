"""The stream of training samples: a pure function of the seed and the place in it.

Sample number ``n`` of a run (its ordinal, counted from 0 over all ranks) is the same image under
the same augmentation whatever the number of loader workers and of ranks, the model, and where the
run was cut. A resumed run needs to know how many batches it has seen, and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from yolof_d2.errors import ConfigError, DataError

from .mapper import build_mapper
from .mosaic import build_mosaic_mapper

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]

# First number of each key of random numbers, so that no two of them share a sequence.
_SAMPLE, _SAMPLER, _STEP = range(3)
_CHUNK = 65536  # samples that are skipped at once
_RETRIES = 100  # other images, where the mapper returns None


class Place(NamedTuple):
    """One sample of a stream."""

    seed: int  # of the stream
    ordinal: int  # its number, from 0, over all ranks
    image: int  # its number in the data set


def seed_step(seed: int, iteration: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch for one iteration on this rank.

    What a model draws, such as dropout, then depends on nothing that happened before.
    """
    words = _words(seed, _STEP, iteration, comm.get_rank())
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2] << 32 | words[3])  # GPUs too


def _words(*key: int) -> list[int]:
    return np.random.SeedSequence(key).generate_state(4).tolist()


@contextmanager
def _seeded(*key: int, others: Iterable[Any] = ()) -> Iterator[None]:
    """Seed Python, NumPy, PyTorch's CPU generator and ``others``; restore all but the others."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _words(*key)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2] << 32 | words[3])
    for generator in others:
        _seed_generator(generator, words[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_generator(generator: Any, seed: int) -> None:
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed)


# Or with those of everybody, which are seeded anyway.
_WITHOUT_GENERATORS = (str, bytes, torch.Tensor, np.ndarray, Dataset, ModuleType, type)
_GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


def _find_generators(thing: Any, seen: set[int]) -> list[Any]:
    """Return the generators that an object holds: a user's augmentation may have its own."""
    if id(thing) in seen or isinstance(thing, _WITHOUT_GENERATORS):
        return []
    seen.add(id(thing))
    if isinstance(thing, _GENERATORS):
        return [thing]
    if isinstance(thing, dict):
        parts: Iterable[Any] = thing.values()
    elif isinstance(thing, (list, tuple, set)):
        parts = thing
    else:
        parts = getattr(thing, "__dict__", {}).values()
    return [found for part in parts for found in _find_generators(part, seen)]


class SeededDataset(Dataset):
    """Maps images to samples, each with random numbers of its own.

    A sample gets two more entries: ``ordinal``, and ``digest``, a number of its image id, pixels
    and boxes. Pixels of the image: every eighth, the sum of the channels, whose order may differ
    between models.
    """

    def __init__(self, images: Sequence[dict[str, Any]], mapper: Mapper) -> None:
        """``images`` in Detectron2's data set format; ``mapper`` as its loaders take it."""
        self._images = images
        self._mapper = mapper
        self._generators = _find_generators(mapper, set())

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits of ids, sizes, boxes and classes of all images, in order."""
        digest = hashlib.sha256()
        for image in self._images:
            boxes = [(each["category_id"], *each["bbox"]) for each in image.get("annotations", ())]
            known = (image.get("image_id"), image.get("height"), image.get("width"), boxes)
            digest.update(repr(known).encode())
        return digest.hexdigest()[:12]

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """
        Raises:
            DataError: the mapper returned None again and again.
        """
        index = place.image
        with _seeded(place.seed, _SAMPLE, place.ordinal, others=self._generators):
            for _ in range(_RETRIES):
                sample = self._mapper(self._images[index])
                if sample is not None:
                    return {**sample, "ordinal": place.ordinal, "digest": _digest(sample)}
                # As Detectron2 does, another image; but a function of the place.
                index = random.randrange(len(self._images))
        raise DataError(
            f"the mapper {self._mapper!r} returned None for image {place.image} and {_RETRIES - 1} "
            "others; it must return a sample for most images of the data set"
        )


def _digest(sample: dict[str, Any]) -> int:
    image, instances = sample.get("image"), sample.get("instances")
    digest = zlib.crc32(repr((sample.get("image_id"), sample.get("mosaic_image_ids"))).encode())
    if isinstance(image, torch.Tensor):
        digest = zlib.crc32(repr(tuple(image.shape)).encode(), digest)
        digest = zlib.crc32(image[:, ::8, ::8].long().sum(dim=0).numpy().tobytes(), digest)
    if instances is not None and instances.has("gt_boxes"):
        digest = zlib.crc32(instances.gt_boxes.tensor.numpy().tobytes(), digest)
    return digest


def extend_word(word: int, digests: Iterable[int]) -> int:
    """Return the word of a stream that goes on with these samples; that of an empty one is 0.

    Two runs have the same word (48 bits) when they have seen the same samples in the same order.
    """
    text = repr((word, list(digests)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


class StreamSampler(Sampler[list[Place]]):
    """Yields, without end, this rank's part of each batch, from batch number ``start`` on.

    Images come in the order of a Detectron2 sampler. With ``wide``, those wider than high and the
    others fill batches of their own, of all ranks together, in the order in which they are full.
    Rank r of R gets the r-th of R equal parts.

    Attributes:
        seed: of the stream; a whole number >= 0.
        start: number of the first batch, from 0. To be set before iteration starts.
    """

    def __init__(
        self,
        build_sampler: Callable[[], Iterable[int]],
        *,
        seed: int,
        batch_size: int,
        wide: np.ndarray | None,
    ) -> None:
        """
        Args:
            build_sampler: returns a sampler of indices; called with generators that are seeded.
            seed: see above.
            batch_size: images of a batch of all ranks.
            wide: bool, for each image of the data set: whether it is wider than high; None to
                leave images as they come.
        """
        self._build_sampler = build_sampler
        self._batch_size = batch_size
        self._wide = wide
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[list[Place]]:
        with _seeded(self.seed, _SAMPLER):
            sampler = self._build_sampler()
        batches = iter_batches(
            self._indices(sampler), self._batch_size, wide=self._wide, start=self.start
        )
        size = self._batch_size // comm.get_world_size()
        own = slice(comm.get_rank() * size, (comm.get_rank() + 1) * size)
        for batch in batches:
            yield [Place(self.seed, ordinal, index) for ordinal, index in batch[own]]

    def _indices(self, sampler: Iterable[int]) -> Iterator[int]:
        if hasattr(sampler, "_infinite_indices"):  # Detectron2's: of all ranks
            yield from sampler._infinite_indices()
        elif isinstance(sampler, Sized):  # PyTorch's: one epoch, perhaps by the global generator
            for epoch in itertools.count():
                with _seeded(self.seed, _SAMPLER, epoch):
                    indices = list(sampler)
                yield from indices
        else:
            yield from sampler


def iter_batches(
    indices: Iterator[int], size: int, *, wide: np.ndarray | None = None, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Cut an endless sequence of indices in batches of (place in the sequence, index).

    Args:
        indices: of images.
        size: of a batch.
        wide: bool by index: indices of either kind fill batches of their own.
        start: number of batches to leave out.
    """
    if wide is None:
        first = start * size
        numbered = enumerate(itertools.islice(indices, first, None), first)
        while batch := list(itertools.islice(numbered, size)):
            yield batch
        return
    # Places of each kind that have not filled a batch; a row is (place, index).
    open_: dict[bool, np.ndarray] = {kind: np.empty((0, 2), np.int64) for kind in (False, True)}
    done = place = 0
    while True:
        chunk = np.fromiter(itertools.islice(indices, _CHUNK), np.int64)
        if not len(chunk):
            return
        rows = np.stack([np.arange(place, place + len(chunk)), chunk], axis=1)
        place += len(chunk)
        full: list[np.ndarray] = []
        for kind in open_:
            mine = np.concatenate([open_[kind], rows[wide[chunk] == kind]])
            whole = len(mine) // size * size
            full.extend(mine[:whole].reshape(-1, size, 2))
            open_[kind] = mine[whole:]
        # A batch is full when its last place comes.
        full.sort(key=lambda batch: batch[-1, 0])
        for filled in full[max(0, start - done) :]:
            yield [(int(n), int(index)) for n, index in filled]
        done += len(full)


def build_train_loader(
    cfg: CfgNode, *, mapper: Mapper | None = None, sampler: Iterable[int] | None = None
) -> DataLoader:
    """Build the endless loader of this rank's batches, each a list of samples.

    It reads the keys that Detectron2's loader reads. Its ``batch_sampler`` is a
    :class:`StreamSampler`.

    Args:
        mapper: None for the one of ``cfg``.
        sampler: of the indices of all ranks; None for ``DATALOADER.SAMPLER_TRAIN``.

    Raises:
        ConfigError: the mapper does not make the same sample of the same place twice.
        DataError: ``DATALOADER.ASPECT_RATIO_GROUPING`` and an image of unknown size.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    own = {"mapper": mapper, "sampler": sampler or ()}
    records = _train_loader_from_config(cfg, **own)["dataset"]
    images = DatasetFromList(records, copy=False)
    if mapper is None:
        mosaic = cfg.INPUT.MOSAIC.PROB != 0
        mapper = build_mosaic_mapper(cfg, images) if mosaic else build_mapper(cfg, is_train=True)
    dataset = SeededDataset(images, mapper)
    _check_repeats(dataset, mapper, seed)

    def build_sampler() -> Iterable[int]:
        if sampler is not None:
            return sampler
        return _train_loader_from_config(cfg, mapper, dataset=images)["sampler"]

    batch_sampler = StreamSampler(
        build_sampler,
        seed=seed,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        wide=_wide(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # else each start would draw from the model's
        worker_init_fn=_ignore_stop_signals,
    )


def _ignore_stop_signals(_: int) -> None:
    """Let a worker live on when all processes are told to stop: an iteration needs its data."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _wide(records: Sequence[dict[str, Any]]) -> np.ndarray:
    try:
        return np.array([record["width"] > record["height"] for record in records])
    except KeyError as error:
        raise DataError(
            f"an image of the training data has no {error}, which grouping by aspect ratio needs; "
            "add it, or set DATALOADER.ASPECT_RATIO_GROUPING False"
        ) from error


def _check_repeats(dataset: SeededDataset, mapper: Mapper, seed: int) -> None:
    """Refuse a mapper with random numbers that no seed reaches."""
    for ordinal in range(3):
        place = Place(seed, ordinal, ordinal % len(dataset))
        if dataset[place]["digest"] != dataset[place]["digest"]:
            augmentations = getattr(getattr(mapper, "augmentations", None), "augs", [])
            names = ", ".join(type(each).__name__ for each in augmentations) or repr(mapper)
            raise ConfigError(
                f"one of {names} gives the same image another look each time: its random numbers "
                "come from a generator that cannot be seeded for each sample. Use those of random, "
                "NumPy (np.random) or PyTorch, or keep the generator as an attribute"
            )
