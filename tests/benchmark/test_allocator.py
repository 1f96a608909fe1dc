from __future__ import annotations

import json
import subprocess
import sys

import pytest

from yolof_d2.benchmark import allocator

# In a process of its own, whose memory nothing else has used: page faults of taking, filling and
# freeing 64 MiB three times, before, inside and after.
SCRIPT = """
import ctypes, json, resource, runpy, sys

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


before = [faults() for _ in range(3)]
with runpy.run_path(sys.argv[1])["freed_memory_kept"]() as kept:
    inside = [faults() for _ in range(3)]
print(json.dumps([kept, before, inside, [faults() for _ in range(3)]]))
"""


def test_freed_memory_is_taken_again_without_page_faults():
    command = [sys.executable, "-c", SCRIPT, allocator.__file__]
    kept, before, inside, after = json.loads(subprocess.check_output(command))
    if not kept:
        pytest.skip("not glibc's allocator")
    # By pages of 4 KiB 16,384 each time, by huge ones 32.
    assert min(before) >= 30
    assert max(inside[1:]) < 10
    assert min(after) >= 30
