"""Read and write records as JSON files; a lock between processes."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from experiments.errors import ExperimentError, RecordError
from yolof_d2 import files

from .records import Record

FORMAT = 1
"""Version of the records; a reader refuses any other."""

Kind = TypeVar("Kind", bound=BaseModel)


def now() -> str:
    """Return the time in UTC, as records and tables write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seconds(stamp: str) -> float:
    """Convert what :func:`now` returned into seconds of :func:`time.time`."""
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of a file as :func:`yolof_d2.files.write_text` does.

    Raises:
        ExperimentError: the folder cannot be written, or the disk or quota is full; the old file is
        untouched.
    """
    try:
        files.write_text(path, text, durable=durable)
    except OSError as error:
        raise ExperimentError(
            f"cannot write {path}: {error.strerror or error}. Expected a writable folder with "
            "space left; nothing that was there is lost. Make room, and give the same command again"
        ) from error


def write_record(path: Path, record: BaseModel, *, durable: bool = True) -> None:
    """Write a record as JSON; see :func:`write_text`."""
    write_text(path, json.dumps(record.model_dump(), indent=1) + "\n", durable=durable)


def read_record(path: Path, kind: type[Kind]) -> Kind | None:
    """Read a record; None if there is no such file.

    Raises:
        RecordError: it is not JSON, not of this kind or format, or cannot be opened.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{path} is damaged (not JSON: {error})") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path} is damaged: expected an object, got {type(values).__name__}")
    if issubclass(kind, Record) and values.get("format") != FORMAT:
        raise RecordError(
            f"{path} has format {values.get('format')!r}, this version reads format {FORMAT}: it "
            "was written by another version of the code"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RecordError(f"{path} is damaged: {where}: {first['msg']}") from error


@contextmanager
def locked(path: Path, *, timeout_s: float = 120) -> Iterator[None]:
    """Hold a lock between processes; the system releases it when its holder dies.

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
