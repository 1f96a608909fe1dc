"""Write files whole or not at all. Needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from yolof_d2.errors import DataError


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file through a temporary one beside it: readers see the old or the new content.

    Args:
        path: its folder is made if it is not there.
        durable: wait until the content is on the disk.

    Yields:
        A file to write bytes to. After an exception the old file is untouched.

    Raises:
        OSError: the folder cannot be written, or the disk or quota is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # it takes space, perhaps on a full disk
            partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def find_run_file(run_folder: Path, name: str) -> Path:
    """Return the path of a file of an evaluated run.

    Raises:
        DataError: it is not there.
    """
    path = run_folder / name
    if not path.is_file():
        raise DataError(
            f"{path} is missing: {run_folder} must be the OUTPUT_DIR of an evaluated run"
        )
    return path


def nan_to_none(value: Any) -> Any:
    """Replace NaN in nested dicts and lists by None, as JSON cannot hold it."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of a text file; see :func:`replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(text.encode())
