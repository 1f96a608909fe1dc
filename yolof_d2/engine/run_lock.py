"""One folder, one training: a lock that ends with its process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from yolof_d2.errors import ConfigError

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 30.0
_held: dict[Path, IO[str]] = {}  # of this process
_next_beat: dict[str, float] = {}  # by folder and the monotonic clock


def lock_run(folder: str, *, stale_seconds: float = 300.0) -> None:
    """Lock an ``OUTPUT_DIR`` for this process, until :func:`unlock_run` or its end.

    ``.lock`` in it says who trains there. The system ends the lock with its process, also one that
    was killed; what an older one left is taken over. Where locks of a shared disk do not reach
    other hosts, the age of the file counts.

    Args:
        folder: is made if it is not there.
        stale_seconds: without a sign of life, after which a lock of another host counts no more; 0
            where that host is known to have ended.

    Raises:
        ConfigError: another process trains there; the message says which.
        OSError: the folder cannot be written.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock of fcntl: processes that are forked, such as loader workers, do not inherit it.
    file = path.open("a+")
    owner = _read(path)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise _in_use(path, owner) from None
    elsewhere = owner.get("host") not in (None, socket.gethostname())
    age = time.time() - path.stat().st_mtime
    if elsewhere and age < stale_seconds:
        file.close()
        raise _in_use(path, owner)
    if owner:
        logger.info("Taking over the lock of a training that has ended: %s", _describe(owner))
    file.seek(0)
    file.truncate()
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
    file.flush()
    _held[path] = file


def beat(folder: str) -> None:
    """Show other hosts that the process lives; cheap enough for every iteration."""
    if time.monotonic() < _next_beat.get(folder, 0.0):
        return
    _next_beat[folder] = time.monotonic() + _BEAT_SECONDS
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        with suppress(OSError):  # a disk that does not answer now
            os.utime(path)


def unlock_run(folder: str) -> None:
    """End the lock of this process, if it has one."""
    path = Path(folder).resolve() / ".lock"
    if file := _held.pop(path, None):
        path.unlink(missing_ok=True)
        file.close()


def _read(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):  # it has just been made
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, object]) -> str:
    since = owner.get("since")
    minutes = f"{(time.time() - since) / 60:.0f} minutes" if isinstance(since, float) else "unknown"
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, for {minutes}"


def _in_use(path: Path, owner: dict[str, object]) -> ConfigError:
    return ConfigError(
        f"another training is at work in {path.parent} ({_describe(owner)}). Choose another "
        "OUTPUT_DIR, or end that one first"
    )
