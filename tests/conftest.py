"""Settings of all tests: no W&B, one thread each, and which of them share a process."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["tests.tracking.client"]

os.environ["WANDB_MODE"] = "disabled"  # unless a test says otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # the processes of pytest-xdist share the cores

settings.register_profile("busy", deadline=None)  # a busy machine may take its time
settings.load_profile("busy")

ROOT = Path(__file__).parents[1]


# Folders and files whose tests start processes, train, or go through all configs: not for work at
# the desk. In the order in which they are run, those that take longest first.
SLOW = (
    *("experiments/jobs/test_slurm_sweeps", "experiments/tracking", "experiments/jobs/test_submit"),
    *("experiments/jobs/test_cancel", "experiments/jobs/test_logs", "experiments/jobs/test_plan"),
    *("test_train_net", "tools/test_model_zoo", "test_configs", "engine/test_ranks"),
    *("engine/test_resume", "tracking"),
    *("experiments/test_main", "modeling/test_families", "experiments/spec/test_shipped_sweeps"),
    *("experiments/spec/test_resolve", "benchmark/test_comparison", "conformance/test_suite"),
    *("modeling/meta_arch", "modeling/backbone", "engine/test_trainer", "convert", "mutants"),
    *("test_docs", "data/validation/test_main", "data/test_mosaic", "conformance/test_main"),
    *("data/test_stream", "engine/test_stop_signals", "engine/test_checkpoint"),
    *("experiments/report/test_plots", "measure", "evaluation"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and start with it."""

    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        return next((i for i, start in enumerate(SLOW) if file.startswith(start)), len(SLOW))

    for item in items:
        if rank(item) < len(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (not item.get_closest_marker("slow"), rank(item)))


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
