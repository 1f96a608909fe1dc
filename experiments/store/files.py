"""JSON records that are written whole or not at all, and a lock between processes."""

from __future__ import annotations

import calendar
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError, RecordError

FORMAT = 1
"""Version of the records; a reader refuses any other."""


def now() -> str:
    """The time in UTC, as records and tables write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seconds(stamp: str) -> float:
    """What :func:`now` gave, as :func:`time.time` would."""
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a file through a temporary one beside it, so that readers see the old or the new text.

    Args:
        path: its folder is made if it is not there.
        text: all of the new content.
        durable: wait until the disk has it; what can be made again need not.

    Raises:
        ExperimentError: the folder cannot be written, or the disk or quota is full; the old file is
        untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        # What is left of it would take space on the disk that is full.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ExperimentError(
            f"cannot write {path}: {error.strerror or error}. Expected a writable folder with "
            "space left; nothing that was there is lost. Mend it and give the same command again"
        ) from error


def write_json(path: Path, record: dict[str, Any], *, durable: bool = True) -> None:
    """Write a record with its format; see :func:`write_text`."""
    write_text(path, json.dumps({"format": FORMAT, **record}, indent=1) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a record; None where there is no such file.

    Raises:
        RecordError: it is not JSON, no object, of another format, or cannot be opened.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    try:
        record = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{path} is damaged (not JSON: {error})") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path} is damaged: expected an object, got {type(record).__name__}")
    if record.get("format") != FORMAT:
        raise RecordError(
            f"{path} has format {record.get('format')!r}, this version reads format {FORMAT}: it "
            "was written by another version of the code"
        )
    return record


@contextmanager
def locked(path: Path, *, timeout_s: float = 120) -> Iterator[None]:
    """Hold a lock between processes; the system lets go of it when its holder dies.

    Raises:
        ExperimentError: another process keeps it for longer than ``timeout_s``, or the folder
        cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise ExperimentError(
            f"another command has held {path} for {timeout_s:.0f} s; expected it to finish. Look "
            "for a hanging 'python -m experiments' (maybe on another machine), then try again"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise ExperimentError(
            f"cannot lock {path}: {error}. Expected a writable folder on a file system with locks"
        ) from error
    try:
        yield
    finally:
        lock.release()
