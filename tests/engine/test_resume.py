"""A run that was killed, however often, is the run that nobody touched.

``python -m tests.engine.test_resume`` kills a run of eight ranks twenty times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from tests.small import ROOT, load, read_lines, write_config
from tests.waiting import CAP
from yolof_d2.engine import Launch, Trainer, setup_run

MAX_ITER = 45
PLUGIN = ROOT / "tests" / "modeling" / "plugin_detectors.py"
MEASURED = ("time", "seconds", "memory", "per_second", "eta_")  # another machine, another value
SCHEDULE = ("SOLVER.MAX_ITER", MAX_ITER, "SOLVER.STEPS", "(30,)", "SOLVER.CHECKPOINT_PERIOD", 7)
SCHEDULE += ("TEST.EVAL_PERIOD", 15, "SOLVER.IMS_PER_BATCH", 4, "SEED", 3)
SCHEDULE += ("INPUT.RANDOM_SHIFT.PROB", 0.5, "SOLVER.DETERMINISTIC", True)


class DieAt(HookBase):
    """Ends the process as SIGKILL does: nothing is written or closed."""

    def __init__(self, iteration: int):
        self._iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            os._exit(9)

    def after_train(self) -> None:  # after the last checkpoint, before the last evaluation
        if self._iteration == MAX_ITER:
            os._exit(9)


def _train(rank: int, ranks: int, config: str, out: str, overrides: tuple, kill: Kill) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group(
            *("gloo", f"file://{out}/{kill.store}"),
            **{"rank": rank, "world_size": ranks, "timeout": timedelta(seconds=CAP)},
        )
        comm.create_local_process_group(ranks)
    cfg = load(config, *SCHEDULE, "OUTPUT_DIR", out, *overrides)
    setup_run(cfg, Launch(resume=True))
    trainer = Trainer(cfg)
    if rank == kill.rank:
        trainer._hooks.insert(0, DieAt(kill.iteration))
        trainer._hooks[0].trainer = trainer
    trainer.resume_or_load(resume=True)
    trainer.train()
    comm.synchronize()
    os._exit(0)


@dataclass(frozen=True)
class Kill:
    """Which rank dies before which iteration; -1: none."""

    iteration: int
    rank: int = 0
    store: str = "store"  # where the ranks meet, a file of each start


END = Kill(-1, rank=-1, store="end")


def train(
    config: str, out: Path, *overrides: object, kills: Sequence[Kill] = (), ranks: int = 1
) -> Path:
    """Train in processes of which one dies in each start but the last."""
    out.mkdir(exist_ok=True)
    for start, kill in enumerate((*kills, END)):
        kill = replace(kill, store=f"store{start}")
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(target=_train, args=(rank, ranks, config, str(out), overrides, kill))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert all(bool(each.exitcode) == (kill.rank >= 0) for each in processes)
    return out


def result(out: Path) -> dict[str, Any]:
    """What must be equal to the last bit."""
    records = [
        {name: str(v) for name, v in line.items() if not any(word in name for word in MEASURED)}
        for line in read_lines(out / "metrics.json")
    ]
    records = [each for each in records if each.keys() != {"iteration"}]
    saved = torch.load(out / "model_final.pth", weights_only=True)
    weights = {name: value.numpy().tobytes() for name, value in saved["model"].items()}
    momentum = saved["trainer"]["_trainer"]["optimizer"]["state"]
    weights |= {i: each["momentum_buffer"].numpy().tobytes() for i, each in momentum.items()}
    detections = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    stream = json.loads((out / "summary.json").read_text())["stream"]
    return {"metrics": records, "weights": weights, "detections": detections, "stream": stream}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return write_config(tmp_path_factory.mktemp("data"), 30, 6)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> dict[str, Any]:
    return result(train(config, tmp_path_factory.mktemp("whole")))


def test_each_iteration_is_there_once_and_the_run_has_learnt(whole):
    iterations = [int(record["iteration"]) for record in whole["metrics"]]
    assert iterations == sorted(set(iterations)) and iterations[-1] == MAX_ITER
    assert float(whole["metrics"][-1]["bbox/AP50"]) > 0


@pytest.mark.parametrize("kills", [(3,), (10, 12, 16, 31, 44), (8, 9, 9), (MAX_ITER, MAX_ITER)])
def test_killed_and_resumed_it_is_the_run_that_nobody_touched(config, whole, tmp_path, kills):
    found = result(train(config, tmp_path, kills=[Kill(iteration) for iteration in kills]))
    for part in ("stream", "metrics", "detections", "weights"):
        assert found[part] == whole[part], part


def test_so_it_is_with_another_number_of_workers(config, whole, tmp_path):
    found = result(train(config, tmp_path, "DATALOADER.NUM_WORKERS", 2, kills=[Kill(20)]))
    assert found == whole


def test_so_it_is_on_several_ranks_whichever_is_killed(config, whole, tmp_path):
    untouched = result(train(config, tmp_path / "whole", ranks=2))
    kills = [Kill(9, rank=1), Kill(11), Kill(30, rank=1), Kill(MAX_ITER, rank=1)]
    found = result(train(config, tmp_path / "killed", kills=kills, ranks=2))
    assert found == untouched
    assert found["stream"] == whole["stream"]  # the samples of one rank


def test_every_detector_sees_one_stream_with_any_workers_and_ranks(config, tmp_path):
    data = Path(config).parent / "data"
    short = ("SOLVER.MAX_ITER", 3, "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", 0)
    retinanet = [
        *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
        *("DATASETS.TRAIN_JSON", data / "annotations" / "instances_train.json"),
        *("DATASETS.TRAIN_IMAGES", data / "images", "DATASETS.TEST_IMAGES", data / "images"),
        *("DATASETS.TEST_JSON", data / "annotations" / "instances_val.json"),
        *("SOLVER.AMP.ENABLED", False, "DATALOADER.NUM_WORKERS", 1),
    ]
    plugin = ("PLUGINS", f"('{PLUGIN}',)", "MODEL.META_ARCHITECTURE", "MyYOLOF")
    quick = str(ROOT / "configs" / "quick" / "synthetic_retinanet.yaml")
    cases = [
        (config, (), 1),
        (config, (), 2),
        (config, ("DATALOADER.NUM_WORKERS", 1), 4),
        (config, ("DATALOADER.NUM_WORKERS", 4), 1),
        (quick, retinanet, 1),
        (quick, retinanet, 2),
        (config, plugin, 1),
        (config, (*plugin, "DATALOADER.NUM_WORKERS", 2), 2),
    ]
    words = set()
    for i, (file, own, ranks) in enumerate(cases):
        out = train(file, tmp_path / str(i), *short, *own, ranks=ranks)
        words.add(json.loads((out / "summary.json").read_text())["stream"])
    assert len(words) == 1 and words != {None}


def main() -> None:
    """Kill a run of 8 ranks 20 times at random, and compare; the long form of the tests above."""
    choose = random.Random(0)
    kills = sorted(choose.randrange(1, MAX_ITER) for _ in range(19))
    starts = [Kill(iteration, rank=choose.randrange(8)) for iteration in kills]
    folder = Path(tempfile.mkdtemp())
    config = write_config(folder, 30, 6)
    batch = ("SOLVER.IMS_PER_BATCH", 8)
    whole = result(train(config, folder / "whole", *batch, ranks=8))
    starts.append(Kill(MAX_ITER, rank=choose.randrange(8)))
    found = result(train(config, folder / "killed", *batch, kills=starts, ranks=8))
    equal = {part: found[part] == whole[part] for part in whole}
    sys.stdout.write(json.dumps({"kills": [[k.iteration, k.rank] for k in starts], **equal}) + "\n")
    sys.exit(not all(equal.values()))


if __name__ == "__main__":
    main()
