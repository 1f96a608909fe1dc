"""Keep page faults out of the times of a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Options of glibc's mallopt, and their defaults.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 128 * 1024
_M_MMAP_MAX, _MMAP_MAX = -4, 65536


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep freed memory in the process, as PyTorch does on a GPU.

    glibc gives large blocks back to the system, and gets them again page by page. That takes up to
    half of a step on a CPU, and how much depends on what the process did before.

    Yields:
        Whether it worked; it needs glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield False
        return
    try:
        yield bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        libc.malloc_trim(0)
