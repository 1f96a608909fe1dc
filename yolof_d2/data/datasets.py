"""Register COCO-format data sets that a config names by two paths: a json and its image folder.

A relative path is looked up from the current folder, then from ``$DETECTRON2_DATASETS`` (default
``datasets``), where Detectron2 looks for its built-in data sets too. ``~`` is expanded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import struct
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from yolof_d2.config import num_classes, set_num_classes
from yolof_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

IMAGE_READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError),
    *(struct.error, Image.DecompressionBombError),
)
"""What Pillow raises for missing, cut and corrupt files (its decoders have no common error)."""

_FileKey = tuple[str, int, int]  # absolute path, modification time in ns, size in bytes
_registered: dict[str, tuple[_FileKey, str]] = {}


def find_data_path(path: str, *, key: str) -> str:
    """Return the absolute path of a file or folder of a data set, the value of a config key.

    Raises:
        DataError: the path does not exist; the message lists the places.
    """
    given = Path(path).expanduser()
    tried = [Path(os.path.abspath(given))]
    if not given.is_absolute():
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        tried.append(Path(os.path.abspath(root / given)))
    for candidate in tried:
        if candidate.exists():
            return str(candidate)
    places = "".join(f"\n  {candidate}" for candidate in dict.fromkeys(tried))
    raise DataError(
        f"{key} = {path!r} was not found; looked for{places}\n"
        "Relative paths start at the current folder or at $DETECTRON2_DATASETS."
    )


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Return the top-level object of a COCO json.

    Raises:
        DataError: the file cannot be read, is not json, or its top level is no object.
    """
    try:
        with open(json_file, encoding="utf-8") as stream:
            document = json.load(stream)
    except OSError as error:
        raise DataError(f"{json_file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not json
        raise DataError(f"{json_file} is not valid json: {error}") from error
    if not isinstance(document, dict):
        raise DataError(
            f"{json_file} is not in COCO format: expected an object with 'images', 'annotations' "
            f"and 'categories', got a {type(document).__name__}"
        )
    return document


def read_categories(json_file: str) -> dict[int, str]:
    """Return the names of a COCO json's categories by id, in the order of their ids.

    The result is cached by path, modification time and size: COCO's file has 450 MB.

    Raises:
        DataError: the file or its categories cannot be used.
    """
    return dict(_read_categories(_file_key(json_file)))


def _file_key(json_file: str) -> _FileKey:
    path = os.path.abspath(json_file)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return path, status.st_mtime_ns, status.st_size


@functools.cache
def _read_categories(key: _FileKey) -> dict[int, str]:
    json_file = key[0]
    entries = read_coco_json(json_file).get("categories")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{json_file} has no 'categories': expected a list with at least one "
            '{"id": 1, "name": "..."}'
        )
    found: dict[int, str] = {}
    for entry in entries:
        valid = isinstance(entry, dict) and type(entry.get("id")) is int
        if not valid or not isinstance(entry.get("name"), str):
            raise DataError(
                f'{json_file}: each category must be like {{"id": 1, "name": "..."}} with a whole '
                f"number as id, got {entry!r}"
            )
        if entry["id"] in found:
            raise DataError(f"{json_file}: category id {entry['id']} is used more than once")
        found[entry["id"]] = entry["name"]
    return dict(sorted(found.items()))


def _register(cfg: CfgNode, split: str) -> tuple[str, str] | None:
    """Register the custom set of "TRAIN" or "TEST", if given; return its name and json path."""
    paths = {key: cfg.DATASETS[key] for key in (f"{split}_JSON", f"{split}_IMAGES")}
    if not any(paths.values()):
        return None
    if not all(paths.values()):
        have, miss = sorted(paths, key=lambda key: not paths[key])
        raise ConfigError(
            f"DATASETS.{have} is set ({paths[have]!r}) but DATASETS.{miss} is empty: a data "
            "set needs both its json and its image folder"
        )
    json_file, image_folder = (
        find_data_path(path, key=f"DATASETS.{key}") for key, path in paths.items()
    )
    # Named by the paths as given: absolute ones would give each machine another config.
    digest = hashlib.sha256("\0".join(paths.values()).encode()).hexdigest()[:8]
    name = f"{Path(json_file).stem}_{digest}"
    state = (_file_key(json_file), image_folder)
    if _registered.get(name) == state and name in DatasetCatalog:
        return name, json_file
    if name in DatasetCatalog:
        # The file changed, or the same relative path now leads elsewhere. Remove the metadata too:
        # Detectron2 refuses to change it, and its class names may be wrong by now.
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    register_coco_instances(name, {}, json_file, image_folder)
    _registered[name] = state
    return name, json_file


def register_datasets(cfg: CfgNode, *, eval_only: bool = False) -> dict[str, tuple[str, str]]:
    """Register the data sets of ``DATASETS.{TRAIN,TEST}_{JSON,IMAGES}`` with Detectron2.

    It may be called any number of times; the config is not changed. With ``eval_only``, training
    data that is absent on this machine is no error.

    Returns:
        Name and absolute json path of each set given, by split: "TRAIN", "TEST".

    Raises:
        ConfigError: a json without an image folder, or the reverse.
        DataError: a path does not exist.
    """
    found: dict[str, tuple[str, str]] = {}
    for split in ("TRAIN", "TEST"):
        try:
            registered = _register(cfg, split)
        except DataError as error:
            if not (eval_only and split == "TRAIN"):
                raise
            logger.warning("Training data is not needed here and was left out: %s", error)
            continue
        if registered is not None:
            found[split] = registered
    return found


def resolve_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Set the names of the user's data sets and the number of classes in the config.

    Where a json is given, ``DATASETS.TRAIN`` / ``DATASETS.TEST`` become the registered name, and
    the number of categories becomes the ``NUM_CLASSES`` of every model.

    Args:
        cfg: not frozen; changed in place.
        eval_only: training data that is absent on this machine, or built-in training data of other
            classes, is no error.

    Raises:
        ConfigError: a json without an image folder, or the reverse.
        DataError: a path does not exist, a json has no usable categories, or training and test
            data differ in their classes.
    """
    classes: dict[str, dict[int, str]] = {}
    for split, (name, json_file) in register_datasets(cfg, eval_only=eval_only).items():
        cfg.DATASETS[split] = (name,)
        classes[split] = read_categories(json_file)
    if not classes:
        return

    if len(classes) == 2:
        _require_same_classes(
            f"DATASETS.TRAIN_JSON ({cfg.DATASETS.TRAIN_JSON})",
            classes["TRAIN"],
            f"DATASETS.TEST_JSON ({cfg.DATASETS.TEST_JSON})",
            classes["TEST"],
            hint="Both files must list the same categories, with the same ids and names.",
        )
    elif "TRAIN" in classes or not eval_only:
        _check_other_split(cfg, *next(iter(classes.items())))

    before, count = num_classes(cfg), len(next(iter(classes.values())))
    set_num_classes(cfg, count)
    names = f"DATASETS.TRAIN = {cfg.DATASETS.TRAIN}, DATASETS.TEST = {cfg.DATASETS.TEST}"
    text = "NUM_CLASSES = %d from the categories of the data (the config had %s); %s"
    logger.info(text, count, before, names)


def _check_other_split(cfg: CfgNode, split: str, own: dict[int, str]) -> None:
    """Compare the classes of the user's one split with those of the other's registered data."""
    other = "TEST" if split == "TRAIN" else "TRAIN"
    for name in cfg.DATASETS[other]:
        if name not in DatasetCatalog:
            continue  # an unknown name is reported by check_datasets and by Detectron2 itself
        theirs = _classes_of_registered(name)
        if theirs is None:
            logger.warning("The classes of data set %s are not known and were not checked.", name)
            continue
        if isinstance(theirs, list):  # no ids are known: compare the names in the order of ids
            ids = [*own, *(f"#{i}" for i in range(len(own), len(theirs)))]
            theirs = dict(zip(ids, theirs, strict=False))
        _require_same_classes(
            f"DATASETS.{split}_JSON ({cfg.DATASETS[f'{split}_JSON']})",
            own,
            f"DATASETS.{other} ({name})",
            theirs,
            hint=f"Set DATASETS.{other}_JSON and DATASETS.{other}_IMAGES too, or name a data set "
            f'with the same classes in DATASETS.{other}; DATASETS.{other} "()" switches it off.',
        )


def _classes_of_registered(name: str) -> dict[Any, str] | list[str] | None:
    """Return the classes of a registered data set without loading it; None if unknown."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if names is None:
        json_file = metadata.get("json_file")
        return read_categories(json_file) if json_file and os.path.isfile(json_file) else None
    if mapping is None:
        return list(names)
    return {category: names[index] for category, index in sorted(mapping.items())}


def _require_same_classes(
    name_a: str, a: dict[int, str], name_b: str, b: dict[Any, str], *, hint: str
) -> None:
    if a == b:
        return
    lines = [
        f"  category id {category}: {a.get(category, '(absent)')!r} in {name_a}, "
        f"{b.get(category, '(absent)')!r} in {name_b}"
        for category in sorted({*a, *b}, key=lambda c: (isinstance(c, str), c))
        if a.get(category) != b.get(category)
    ]
    if len(lines) > 10:
        lines = [*lines[:10], f"  ... and {len(lines) - 10} more"]
    differ = f"The classes of {name_a} ({len(a)}) and {name_b} ({len(b)}) differ:"
    raise DataError("\n".join([differ, *lines, hint]))
