"""Settings of all tests: no W&B, one thread each, and which of them share a process."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["WANDB_MODE"] = "disabled"  # unless a test says otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # the processes of pytest-xdist share the cores

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest."""
    items.sort(key=lambda item: [not item.get_closest_marker(name) for name in ("slurm", "slow")])


@functools.cache
def group(file: str) -> str:
    """The group of all tests of a file, empty where each may run in a process of its own."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if "pytest.mark.slurm" in text:
        return "slurm"  # they share one cluster
    return file if 'scope="module"' in text else ""  # what they share may be a whole training


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a group in one process of pytest-xdist.

    Its own ``--dist loadgroup`` does not: version 3.8 writes to an attribute that pytest 9.2 does
    not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0]) or nodeid

    config.option.loadscopereorder = False  # the order is ours
    return Scheduler(config, log)
