"""A run of eight ranks, as real processes over gloo."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode

from tests.small import load, write_config
from tests.waiting import CAP, spawn
from yolof_d2.engine import Trainer
from yolof_d2.engine.checkpoint import StrictDetectionCheckpointer
from yolof_d2.measure.metrics_file import read_metrics

RANKS = 8
ITERATIONS = 5


def make_cfg(folder: Path, output: str) -> CfgNode:
    overrides = {
        "OUTPUT_DIR": folder / output,
        "MODEL.DEVICE": "cpu",
        # Wide enough for real detections before anything is learned, and for skewed batches.
        "MODEL.YOLOF.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "TEST.EVAL_PERIOD": 3,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.STEPS": (4,),
        "SOLVER.IMS_PER_BATCH": 2 * RANKS,
        "SOLVER.BASE_LR": 0.003,
    }
    return load(folder / "model.yaml", *(word for pair in overrides.items() for word in pair))


def evaluate(cfg: CfgNode, weights: Path) -> dict[str, Any]:
    """What --eval-only does."""
    model = Trainer.build_model(cfg)
    StrictDetectionCheckpointer(model, cfg.OUTPUT_DIR).load(str(weights))
    return Trainer.test(cfg, model)


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}


def rank(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=number,
        world_size=RANKS,
        timeout=timedelta(seconds=CAP),
    )
    from detectron2.utils import comm

    comm.create_local_process_group(RANKS)
    cfg = make_cfg(folder, "run")
    trainer = Trainer(cfg)
    if number == 3:
        held = bytearray(300 * 2**20)  # a rank with more memory than the others
        held[::4096] = b"x" * len(held[::4096])
    own = {}
    step = trainer.run_step

    def run_step():
        step()
        own["before"] = statistics(trainer._trainer.bare_model)  # averaged after this

    trainer.run_step = run_step
    trainer.train()
    own["after"] = statistics(trainer._trainer.bare_model)
    own["shared"] = evaluate(make_cfg(folder, "eval8"), folder / "run" / "model_final.pth")
    torch.save(own, folder / f"{number}.pth")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process whose interpreter ends


@dataclass
class Run:
    folder: Path
    ranks: list[dict[str, Any]]

    @property
    def records(self) -> list[dict[str, float]]:
        return read_metrics(self.folder / "run" / "metrics.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("ranks")
    write_config(folder)
    spawn(rank, folder, ranks=RANKS)
    return Run(folder, [torch.load(folder / f"{i}.pth", weights_only=False) for i in range(RANKS)])


def detections(folder: Path) -> list[dict]:
    found = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return sorted(found, key=lambda d: (d["image_id"], -d["score"], d["bbox"]))


def test_batch_statistics_of_all_ranks_become_their_mean(run):
    first = run.ranks[0]["before"]
    apart = [
        name
        for name in first
        if not torch.allclose(first[name], run.ranks[5]["before"][name], rtol=1e-3)
    ]
    assert len(apart) > len(first) / 2  # else there is nothing to average
    saved = torch.load(run.folder / "run" / "model_final.pth", weights_only=False)["model"]
    for name in first:
        mean = torch.stack([own["before"][name].double() for own in run.ranks]).mean(dim=0)
        for own in run.ranks:
            torch.testing.assert_close(own["after"][name].double(), mean, rtol=1e-5, atol=1e-7)
            assert torch.equal(own["after"][name], saved[name]), name


def test_ap_in_training_is_that_of_the_saved_file_on_eight_ranks_and_on_one(run):
    torch.set_num_threads(1)
    in_training = run.records[-1]
    alone = evaluate(make_cfg(run.folder, "eval1"), run.folder / "run" / "model_final.pth")
    shared = run.ranks[0]["shared"]
    assert alone["bbox"]["AP"] > 0
    for name, value in alone["bbox"].items():
        same = [in_training[f"bbox/{name}"], shared["bbox"][name]]
        assert same == pytest.approx([value, value], rel=0, abs=0, nan_ok=True), name
    expected = detections(run.folder / "eval1")
    assert len(expected) > 100
    assert detections(run.folder / "run") == detections(run.folder / "eval8") == expected
    assert all(own["shared"] == {} for own in run.ranks[1:])


def test_memory_is_that_of_each_rank_and_of_the_one_with_most(run):
    last = next(r for r in reversed(run.records) if "train/memory_process_mib" in r)
    each = [last[f"per_rank/train_memory_process_mib_rank{i}"] for i in range(RANKS)]
    assert last["train/memory_process_mib"] == max(each) == each[3]
    assert each[3] > sorted(each)[-2] + 200
