"""The user's own COCO-format data, without code: two paths in the config are enough.

``DATASETS.TRAIN_JSON`` + ``DATASETS.TRAIN_IMAGES`` (and ``TEST_*``) name a COCO json and the folder
with its images. :func:`resolve_datasets` turns them into ``DATASETS.TRAIN`` / ``DATASETS.TEST`` and
sets the number of classes; :func:`register_datasets` makes the names known to Detectron2.

A relative path is looked up from the current folder, then from ``$DETECTRON2_DATASETS`` (default
``datasets``), where Detectron2 looks for its built-in data sets too. ``~`` is expanded.
"""

from __future__ import annotations

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

__all__ = [
    "custom_dataset_name",
    "find_data_path",
    "read_categories",
    "read_coco_json",
    "register_datasets",
    "resolve_datasets",
]

logger = logging.getLogger(__name__)

IMAGE_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for missing, cut and corrupt files (its decoders have no common error)."""

_FileKey = tuple[str, int, int]  # absolute path, modification time in ns, size in bytes
_categories: dict[_FileKey, dict[int, str]] = {}
_registered: dict[str, tuple[_FileKey, str]] = {}


def find_data_path(path: str, *, key: str) -> str:
    """Find a file or folder of a data set.

    Args:
        path: as written in the config.
        key: the config key (or other name of the place) it comes from, for the error message.

    Returns:
        The absolute path.

    Raises:
        DataError: it is at none of the places, which are listed.
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


def custom_dataset_name(json_file: str, image_folder: str) -> str:
    """The name of a data set: the json's stem and a hash of both paths as given in the config.

    The paths as given, not the absolute ones: the name is then the same on every machine and in
    every checkout, and so is a config that contains it.
    """
    digest = hashlib.sha256(f"{json_file}\0{image_folder}".encode()).hexdigest()[:8]
    return f"{Path(json_file).stem}_{digest}"


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Read a COCO json.

    Returns:
        Its top-level object.

    Raises:
        DataError: the file cannot be read, is not json, or holds something else than an object.
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
    """The categories of a COCO json, in the order of their ids.

    Cached per process by path, modification time and size: COCO's file has 450 MB.

    Returns:
        Category id -> name.

    Raises:
        DataError: the file or its categories cannot be used.
    """
    key = _file_key(json_file)
    if key not in _categories:
        _categories[key] = _parse_categories(json_file, read_coco_json(json_file))
    return dict(_categories[key])


def _file_key(json_file: str) -> _FileKey:
    path = os.path.abspath(json_file)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return path, status.st_mtime_ns, status.st_size


def _parse_categories(json_file: str, document: dict[str, Any]) -> dict[int, str]:
    entries = document.get("categories")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{json_file} has no 'categories': expected a list with at least one "
            '{"id": 1, "name": "..."}'
        )
    found: dict[int, str] = {}
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("name"), str)
        ):
            raise DataError(
                f'{json_file}: each category must be like {{"id": 1, "name": "..."}} with a whole '
                f"number as id, got {entry!r}"
            )
        if entry["id"] in found:
            raise DataError(f"{json_file}: category id {entry['id']} is used more than once")
        found[entry["id"]] = entry["name"]
    return dict(sorted(found.items()))


def _custom_paths(cfg: CfgNode, split: str) -> tuple[str, str] | None:
    """(json, image folder) as given for ``split`` "TRAIN" or "TEST", None if neither is set."""
    json_key, image_key = f"{split}_JSON", f"{split}_IMAGES"
    json_file, image_folder = cfg.DATASETS[json_key], cfg.DATASETS[image_key]
    if bool(json_file) != bool(image_folder):
        have, miss = (json_key, image_key) if json_file else (image_key, json_key)
        raise ConfigError(
            f"DATASETS.{have} is set ({cfg.DATASETS[have]!r}) but DATASETS.{miss} is empty: a data "
            "set needs both its json and its image folder"
        )
    return (json_file, image_folder) if json_file else None


def _register(cfg: CfgNode, split: str) -> tuple[str, str] | None:
    """Register the custom set of a split; returns its name and the json's absolute path."""
    paths = _custom_paths(cfg, split)
    if paths is None:
        return None
    json_file = find_data_path(paths[0], key=f"DATASETS.{split}_JSON")
    image_folder = find_data_path(paths[1], key=f"DATASETS.{split}_IMAGES")
    name = custom_dataset_name(*paths)
    state = (_file_key(json_file), image_folder)
    if _registered.get(name) == state and name in DatasetCatalog:
        return name, json_file
    if name in DatasetCatalog:
        # The file changed, or the same relative path now leads elsewhere. The old metadata must
        # go: Detectron2 refuses to change it, and its class names may be wrong by now.
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    register_coco_instances(name, {}, json_file, image_folder)
    _registered[name] = state
    return name, json_file


def register_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Make the data sets of ``DATASETS.TRAIN_JSON`` / ``TEST_JSON`` known to Detectron2.

    May be called any number of times, and with many configs in one process. The config is not
    changed and may be frozen.

    Args:
        cfg: ``DATASETS.{TRAIN,TEST}_{JSON,IMAGES}`` are read.
        eval_only: training data that is absent on this machine is no error.

    Raises:
        ConfigError: a json without an image folder, or the reverse.
        DataError: a path does not exist.
    """
    _register_splits(cfg, eval_only=eval_only)


def _register_splits(cfg: CfgNode, *, eval_only: bool) -> dict[str, tuple[str, str]]:
    """Register what is given; returns split -> (name, absolute path of the json)."""
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
    """Put the user's data sets into the config: names, and the number of classes.

    ``DATASETS.TRAIN`` / ``DATASETS.TEST`` become the registered names where a json is given and
    stay as they are elsewhere. If any json is given, its number of categories becomes the
    ``NUM_CLASSES`` of every model.

    Args:
        cfg: not frozen; changed in place.
        eval_only: nothing will be trained, so training data that is absent on this machine, or
            built-in training data of other classes, is no error.

    Raises:
        ConfigError: a json without an image folder, or the reverse.
        DataError: a path does not exist, a json has no usable categories, or training and test
            data differ in their classes.
    """
    classes: dict[str, dict[int, str]] = {}
    for split, (name, json_file) in _register_splits(cfg, eval_only=eval_only).items():
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
    else:
        _check_other_split(cfg, classes, eval_only=eval_only)

    before, count = num_classes(cfg), len(next(iter(classes.values())))
    set_num_classes(cfg, count)
    logger.info(
        "NUM_CLASSES = %d from the categories of the data (the config had %s); "
        "DATASETS.TRAIN = %s, DATASETS.TEST = %s",
        count,
        before,
        tuple(cfg.DATASETS.TRAIN),
        tuple(cfg.DATASETS.TEST),
    )


def _check_other_split(
    cfg: CfgNode, classes: dict[str, dict[int, str]], *, eval_only: bool
) -> None:
    """One split is the user's, the other names registered data: their classes must agree."""
    (split, own) = next(iter(classes.items()))
    other = "TEST" if split == "TRAIN" else "TRAIN"
    if other == "TRAIN" and eval_only:
        return
    for name in cfg.DATASETS[other]:
        if name not in DatasetCatalog:
            continue  # an unknown name is reported by check_datasets and by Detectron2 itself
        theirs = _classes_of_registered(name)
        if theirs is None:
            logger.warning("The classes of data set %s are not known and were not checked.", name)
            continue
        if isinstance(theirs, list):  # no ids are known: compare the names in the order of ids
            theirs = dict(zip(own, theirs, strict=False)) | {
                f"#{i}": theirs[i] for i in range(len(own), len(theirs))
            }
        _require_same_classes(
            f"DATASETS.{split}_JSON ({cfg.DATASETS[f'{split}_JSON']})",
            own,
            f"DATASETS.{other} ({name})",
            theirs,
            hint=f"Set DATASETS.{other}_JSON and DATASETS.{other}_IMAGES too, or name a data set "
            f'with the same classes in DATASETS.{other}; DATASETS.{other} "()" switches it off.',
        )


def _classes_of_registered(name: str) -> dict[Any, str] | list[str] | None:
    """Classes of a registered data set without loading it; None if they cannot be known."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if names is not None and mapping is not None:
        return {category: names[index] for category, index in sorted(mapping.items())}
    if names is not None:
        return list(names)
    json_file = metadata.get("json_file")
    if json_file is not None and os.path.isfile(json_file):
        return read_categories(json_file)
    return None


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
    raise DataError(
        f"The classes of {name_a} ({len(a)}) and {name_b} ({len(b)}) differ:\n"
        + "\n".join(lines)
        + f"\n{hint}"
    )
