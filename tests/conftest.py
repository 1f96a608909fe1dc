"""Settings of all tests: no W&B, one thread each, and which of them share a process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["WANDB_MODE"] = "disabled"  # unless a test says otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # the processes of pytest-xdist share the cores


@pytest.hookimpl(wrapper=True)  # a wrapper, so that it comes before that of pytest-xdist
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Group the tests for pytest-xdist, and start with what takes longest.

    Tests that need SLURM share one cluster; tests that share a fixture of their file, which may
    be a whole training, share its process.
    """
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif any(f.scope == "module" and f.baseid.endswith(".py") for (*_, f) in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    items.sort(key=lambda item: [not item.get_closest_marker(name) for name in ("slurm", "slow")])
    return (yield)
