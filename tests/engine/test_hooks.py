from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.train_loop import TrainerBase
from torch import nn

from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.engine import hooks
from yolof_d2.engine.hooks import (
    AverageBatchNorm,
    DrawPredictions,
    ResumableBestCheckpointer,
    RunSummary,
)


class Run(TrainerBase):
    stream_word = 0xABC

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


def test_the_best_checkpoint_holds_its_own_value():
    saver, hook = best([math.nan, 1.0, 3.0, 3.0, math.nan, math.inf, 2.0])
    assert saver.saved == [("model_best", 1.0), ("model_best", 3.0)]
    assert hook.state_dict() == {"best_metric": 3.0, "best_iter": 2}


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


# Batch statistics


def test_batch_statistics_that_are_trained_become_the_mean_of_all_ranks(monkeypatch):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    model[0].running_mean[:] = torch.tensor([1.0, 3.0])
    # The other of two ranks has 2 more everywhere.
    monkeypatch.setattr(hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(hooks.dist, "all_reduce", lambda own: own.add_(own + 2))
    AverageBatchNorm(model).after_step()
    assert model[0].running_mean.tolist() == [2, 4] and model[0].running_var.tolist() == [2, 2]
    assert model[1].running_mean.tolist() == [0, 0] and model[1].running_var.tolist() == [1, 1]


# Summary


def finish(folder, *records: dict, results: dict | None = None) -> dict:
    """The summary of a run whose metrics are these."""
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.json").write_text("".join(lines))
    run = Run(RunSummary(str(folder), 8, lambda: {"seed": 5}))
    run._last_eval_results = results
    run.train(0, 3)
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_is_of_all_starts_of_a_run(tmp_path):
    summary = finish(
        tmp_path,
        {"iteration": 0, "time": 1.0},
        {"iteration": 1, "time": 9.0},  # after the checkpoint from which the run went on
        {"iteration": 1, "time": 3.0},
        {"iteration": 2, "time": 2.0},
        results={"bbox": {"AP": 1.0, "APl": math.nan}, "eval": {"seconds": 3.0}},
    )
    assert summary["median_seconds_per_iteration"] == 2.0
    assert summary["training_minutes"] == pytest.approx(6 / 60)
    assert (summary["iterations"], summary["batch_size"], summary["seed"]) == (3, 8, 5)
    assert summary["results"] == {"bbox": {"AP": 1.0, "APl": None}}


def test_a_run_without_evaluation_or_timing_has_a_summary_too(tmp_path):
    assert finish(tmp_path)["results"] == {}


# Pictures


class Evaluates(Run):
    """A run with an evaluation in the iterations named, and after the last."""

    def __init__(self, hook, at: list[int]):
        super().__init__(hook, scalars={i: {"eval/seconds": 1.0} for i in at})

    def after_train(self):
        self.storage.iter = self.iter
        self.storage.put_scalar("eval/seconds", 1.0, smoothing_hint=False)
        super().after_train()


@pytest.fixture
def drawn(tmp_path):
    data = write_synthetic_dataset(tmp_path / "data", num_train=1, num_val=4, image_size=(32, 32))
    name = f"pictures_{tmp_path.name}"
    register_coco_instances(name, {}, data.val_json, data.image_folder)
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").write_text("[]")
    yield lambda period: DrawPredictions(name, str(tmp_path), num_images=2, period=period)
    DatasetCatalog.remove(name)


@pytest.mark.parametrize(("period", "expected"), [(0, [12]), (4, [3, 7, 12]), (3, [12])])
def test_pictures_are_drawn_where_an_evaluation_falls_on_their_period(
    drawn, tmp_path, period, expected
):
    run = Evaluates(drawn(period), at=[3, 7])
    run.train(0, 12)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"{i:07d}.png" for i in expected]
    assert [(name, i) for name, _, i in run.storage._vis_data] == [
        ("predictions", i) for i in expected
    ]
    _, image, _ = run.storage._vis_data[-1]
    assert image.dtype == "uint8" and image.shape[0] == 3


def test_an_image_that_has_gone_does_not_stop_a_run(drawn, tmp_path, caplog):
    for path in (tmp_path / "data" / "images").iterdir():
        path.unlink()
    Evaluates(drawn(0), at=[]).train(0, 2)
    assert "No picture" in caplog.text
