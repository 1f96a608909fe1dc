"""Training hooks: equal batch statistics, best checkpoint, pictures, stop on request, summary."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import BestCheckpointer, HookBase
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from fvcore.common.checkpoint import Checkpointer
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolof_d2.errors import TrainingStopped
from yolof_d2.evaluation.pictures import draw_images, pick_images
from yolof_d2.files import nan_to_none, replacing, write_text
from yolof_d2.measure.metrics_file import read_metrics, summarise

logger = logging.getLogger(__name__)


class AverageBatchNorm(HookBase):
    """Average the running statistics of batch normalisation over all ranks.

    Each rank's statistics follow its own images. Without this, every rank would evaluate its share
    of the images with a model of its own, and a checkpoint would hold the main rank's alone. As a
    running mean of means is the mean of running means, averaging in every iteration gives what
    averaging before each evaluation would. Training itself does not read them.
    """

    def __init__(self, model: nn.Module):
        # SyncBN has them equal already; those of frozen layers stay as they are.
        self._buffers = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            if module.training and module.track_running_stats
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        ranks = comm.get_world_size()
        if ranks == 1 or not self._buffers:
            return
        together = torch.cat(self._buffers)
        dist.all_reduce(together)
        together /= ranks
        torch._foreach_copy_(self._buffers, together.split([len(b) for b in self._buffers]))


class ResumableBestCheckpointer(BestCheckpointer):
    """Remember the best value over a resume, which Detectron2's ``BestCheckpointer`` does not."""

    def _best_checking(self) -> None:
        # Detectron2 saves before it notes the new value, so that model_best.pth would hold the old
        # one; and a run would resume from it, though the figures of its iteration are not written.
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, 0))
        improves = self.best_metric is None or (value is not None and value > self.best_metric)
        if value is None:
            self._logger.warning("TEST.BEST_METRIC %s was not computed", self._val_metric)
        elif improves and self._update_best(value, iteration):
            self._checkpointer.save(self._file_prefix, resumable=False, iteration=iteration)

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class StopOnRequest(HookBase):
    """Save a checkpoint and end training after an iteration in which a rank was asked to stop.

    It must be the last hook: what is due at this iteration, such as an evaluation, comes before.
    """

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        """
        Raises:
            TrainingStopped: on every rank in the same iteration.
        """
        reason = self.trainer.agreed_stop
        done = self.trainer.iter + 1
        if reason and done < self.trainer.max_iter:
            logger.info("Stopping after %d iterations: %s", done, reason)
            self._checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise TrainingStopped(reason)


class DrawPredictions(HookBase):
    """Draw ground truth beside predictions, always of the same images, after evaluations.

    The picture goes to ``OUTPUT_DIR/pictures`` and, as ``predictions``, into the event storage. It
    runs on the main rank, after ``EvalHook``.
    """

    def __init__(self, dataset: str, output_dir: str, *, num_images: int, period: int):
        """
        Args:
            dataset: name of the evaluated data set.
            output_dir: ``OUTPUT_DIR``.
            num_images: images of a picture.
            period: iterations between pictures, where an evaluation falls on them; 0 for the last
                evaluation alone, which always has one.
        """
        self._dataset = dataset
        self._folder = Path(output_dir)
        self._num_images = num_images
        self._period = period

    def after_step(self) -> None:
        if self._period and (self.trainer.iter + 1) % self._period == 0:
            self._draw()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        evaluated = self.trainer.storage.latest().get("eval/seconds", (0, None))[1]
        if evaluated != self.trainer.iter:
            return
        try:
            picture = draw_images(
                self._records,
                MetadataCatalog.get(self._dataset),
                self._folder / "inference" / "coco_instances_results.json",
            )
            path = self._folder / "pictures" / f"{self.trainer.iter:07d}.png"
            with replacing(path, durable=False) as file:
                Image.fromarray(picture).save(file, format="PNG")
        except OSError as error:  # an image that has gone, a full disk
            logger.warning("No picture of the predictions: %s", error)
            return
        self.trainer.storage.put_image("predictions", picture.transpose(2, 0, 1))

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        return pick_images(DatasetCatalog.get(self._dataset), self._num_images)


class RunSummary(HookBase):
    """Log results, speed and memory of a finished run, and write them to ``summary.json``.

    They are a digest of ``metrics.json``, of all starts of the run; its writer must come before.
    """

    def __init__(self, output_dir: str, batch_size: int, describe: Callable[[], dict[str, Any]]):
        """
        Args:
            output_dir: where ``summary.json`` goes.
            batch_size: images of an iteration, of all ranks.
            describe: returns the provenance; called at the start, before the code on disk changes.
        """
        self._folder = Path(output_dir)
        self._batch_size = batch_size
        self._describe = describe

    def before_train(self) -> None:
        self._provenance = self._describe()

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # stopped early: an error, or a signal
            return
        results = dict(getattr(self.trainer, "_last_eval_results", None) or {})
        results.pop("eval", None)  # what the evaluation cost is among the other measurements
        summary = {
            "iterations": self.trainer.max_iter,
            "batch_size": self._batch_size,
            **summarise(read_metrics(self._folder / "metrics.json")),
            "results": results,
            "stream": self._stream(),
            **self._provenance,
        }
        path = self._folder / "summary.json"
        write_text(path, json.dumps(nan_to_none(summary), indent=2, allow_nan=False))
        boxes = results.get("bbox", {})
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        row = {name: boxes[name] for name in names if name in boxes}
        row["s/iter"] = summary["median_seconds_per_iteration"]
        row.update({f"{name} MiB": value for name, value in summary["peak_memory_mib"].items()})
        logger.info("Finished; written to %s\n%s", path, create_small_table(row))

    def _stream(self) -> str | None:
        word = self.trainer.stream_word
        return None if math.isnan(word) else f"{word:012x}"
