from __future__ import annotations

import json
import logging
import math
import sys

import pytest
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import get_event_storage

from yolof_d2 import hooks
from yolof_d2.hooks import MemoryMonitor, ResumableBestCheckpointer, RunSummary, peak_memory_mib


class Run(TrainerBase):
    """Does nothing but put the scalars listed for each iteration."""

    def __init__(self, *own, scalars: dict[int, dict[str, float]] | None = None):
        super().__init__()
        self.scalars = scalars or {}
        self.register_hooks(own)

    def run_step(self):
        self.storage.put_scalars(smoothing_hint=False, **self.scalars.get(self.iter, {}))


class Saver:
    def __init__(self):
        self.saved: list[tuple[str, float]] = []

    def save(self, name, **extra):
        self.saved.append((name, self.hook.state_dict()["best_metric"]))


def best(values: list[float], metric: str = "bbox/AP") -> tuple[Saver, ResumableBestCheckpointer]:
    saver = Saver()
    saver.hook = ResumableBestCheckpointer(1, saver, metric)
    scalars = {i: {"bbox/AP": value} for i, value in enumerate(values)}
    Run(saver.hook, scalars=scalars).train(0, len(values) + 1)
    return saver, saver.hook


def test_peak_memory_is_in_mib_and_never_falls():
    first = peak_memory_mib()["process"]
    held = bytearray(64 * hooks.MIB)
    held[::4096] = b"x" * len(held[::4096])  # touch each page
    assert 50 < first < 1e5
    assert peak_memory_mib()["process"] >= first


def test_bytes_of_macos_and_kib_of_linux_mean_the_same(monkeypatch):
    kib = peak_memory_mib()["process"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mib()["process"] == pytest.approx(kib / 1024, rel=0.2)


def test_memory_is_written_every_period_and_after_the_last_iteration():
    class Check(hooks.HookBase):
        def after_train(self):
            name = "memory/peak_process_mib"
            found.extend(it for _, it in get_event_storage().history(name).values())

    found: list[int] = []
    Run(MemoryMonitor(period=3), Check()).train(0, 8)
    assert found == [2, 5, 7]


def test_the_best_checkpoint_holds_its_own_value():
    saver, hook = best([1.0, 3.0, 2.0])
    assert saver.saved == [("model_best", 1.0), ("model_best", 3.0)]
    assert hook.state_dict() == {"best_metric": 3.0, "best_iter": 1}


def test_a_value_that_is_not_a_number_is_never_the_best():
    saver, _ = best([math.nan, 1.0, math.nan, math.inf])
    assert [value for _, value in saver.saved] == [1.0]


def test_a_metric_that_is_not_computed_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        saver, _ = best([1.0], metric="bbox/APP")
    assert not saver.saved and "bbox/APP" in caplog.text


def test_after_loading_only_a_higher_value_is_saved():
    saver = Saver()
    saver.hook = ResumableBestCheckpointer(1, saver, "bbox/AP")
    saver.hook.load_state_dict({"best_metric": 2.0, "best_iter": 7})
    scalars = {8: {"bbox/AP": 1.5}, 9: {"bbox/AP": 2.5}}
    Run(saver.hook, scalars=scalars).train(8, 11)
    assert saver.saved == [("model_best", 2.5)]


def test_the_summary_holds_the_median_time_the_results_and_what_it_is_told(tmp_path):
    scalars = {i: {"time": seconds} for i, seconds in enumerate([9.0, 1.0, 2.0])}
    run = Run(RunSummary(str(tmp_path), lambda: {"seed": 5}), scalars=scalars)
    run._last_eval_results = {"bbox": {"AP": 1.0}}
    run.train(0, 3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["median_seconds_per_iteration"] == 2.0
    assert summary["training_minutes"] == pytest.approx(12 / 60)
    assert (summary["iterations"], summary["seed"]) == (3, 5)
    assert summary["results"] == {"bbox": {"AP": 1.0}}


def test_a_run_without_evaluation_or_timing_has_a_summary_too(tmp_path):
    Run(RunSummary(str(tmp_path), dict)).train(0, 1)
    assert json.loads((tmp_path / "summary.json").read_text())["results"] == {}
