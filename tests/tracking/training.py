"""A training without a model: what Detectron2's hooks do to the writers, for their tests."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from PIL import Image

from tests.small import default_cfg
from yolof_d2.measure.metrics_writer import MetricsWriter
from yolof_d2.tracking import WandbWriter

PERIOD = 20  # of writing


def make_cfg(folder: Path, iterations: int = 100) -> CfgNode:
    """A config that logs to W&B."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = default_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.WANDB.ENABLED = True
    cfg.WANDB.TAGS = ("ours",)
    return cfg


def train(
    cfg: CfgNode,
    first: int = 0,
    last: int | None = None,
    *,
    after: Callable[[int], None] = lambda done: None,
) -> None:
    """Train from iteration ``first`` to before ``last``, and evaluate every 50 and at the end.

    Args:
        cfg: of :func:`make_cfg`.
        first: where it goes on.
        last: where it stops; the end of the run by default.
        after: called after each iteration with the number of those that are done.
    """
    folder = Path(cfg.OUTPUT_DIR)
    iterations = cfg.SOLVER.MAX_ITER
    last = iterations if last is None else last
    with EventStorage(first) as storage:
        writers = [
            MetricsWriter(str(folder / "metrics.json")),
            WandbWriter(cfg, is_resumed=lambda: first > 0),
        ]
        for iteration in range(first, last):
            storage.iter = iteration
            storage.put_scalar("total_loss", random.random())
            storage.put_scalar("match/positives_per_gt_large", math.nan, smoothing_hint=False)
            if (iteration + 1) % 50 == 0 and iteration + 1 < iterations:
                _evaluate(storage, folder)
            if (iteration + 1) % PERIOD == 0 or iteration + 1 == iterations:
                for writer in writers:
                    writer.write()
            after(iteration + 1)
        storage.iter = last
        if last == iterations:
            _evaluate(storage, folder)
        for writer in writers:
            writer.write()
            writer.close()


def _evaluate(storage: EventStorage, folder: Path) -> None:
    scalars = {"bbox/AP": random.random(), "bbox/AP-cat": random.random()}
    scalars |= {"bbox/AP-dog": math.nan, "errors/missed": random.random()}
    storage.put_scalars(smoothing_hint=False, **scalars)
    path = folder / "pictures" / f"{storage.iter:07d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def train_and_die(
    cfg: CfgNode, first: int, last: int, *, after: Callable[[int], None] = lambda done: None
) -> None:
    """Train in a process of its own, which is killed after iteration ``last - 1``."""

    def live_and_die(done: int) -> None:
        after(done)
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        os.environ.pop("WANDB_SERVICE", None)  # W&B's process of this one
        train(cfg, first, after=live_and_die)
        os._exit(1)  # it did not die
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def timeline(folder: Path) -> dict[int, dict[str, float]]:
    """Iteration -> figures of a run as if it had not been interrupted, without NaN.

    Written without regard to what it is the oracle of.
    """
    points: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        figures = json.loads(line)
        now = figures["iteration"]
        points = {i: old for i, old in points.items() if i < now}
        points[now] = {name: value for name, value in figures.items() if value == value}
    return points
