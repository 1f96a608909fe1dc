"""The trainer: Detectron2's, with our data, optimizer groups, precision and hooks."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, default_setup
from detectron2.engine.train_loop import TrainerBase
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from yolof_d2.config import load_plugins
from yolof_d2.data import build_mapper, build_mosaic_mapper, register_datasets
from yolof_d2.evaluation import COCOBoxEvaluator
from yolof_d2.measure.metrics_writer import MetricsWriter
from yolof_d2.measure.provenance import describe_run
from yolof_d2.measure.scalars import GradientNorm, TrainingMeasurements, measure_evaluation
from yolof_d2.tracking import WandbWriter

from .checkpoint import StrictDetectionCheckpointer
from .hooks import (
    AverageBatchNorm,
    DrawPredictions,
    ResumableBestCheckpointer,
    RunSummary,
    StopOnRequest,
)
from .preflight import Launch
from .train_loop import MixedPrecisionTrainer

logger = logging.getLogger(__name__)

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def setup_run(cfg: CfgNode, launch: Launch) -> None:
    """Set up plug-ins, data sets, loggers and seed in this process; save the resolved config."""
    load_plugins(cfg.PLUGINS)  # again, because each rank is a process of its own
    register_datasets(cfg, eval_only=launch.eval_only)
    default_setup(cfg, launch)  # reads config_file and eval_only of its second argument
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="yolof_d2")


class Trainer(DefaultTrainer):
    """Trains and evaluates any Detectron2 meta-architecture the same way, for fair comparisons."""

    def __init__(self, cfg: CfgNode, *, command: str = ""):
        """Build everything from ``cfg``, as ``DefaultTrainer`` does.

        ``command`` trains the same, for the records; empty for that of this process.
        """
        # DefaultTrainer builds its step trainer and DDP wrapper inline, for CUDA only, so its body
        # is restated here.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        # Not the local rank: where each process sees its own GPU alone, all of them are number 0.
        on_gpu = next(model.parameters()).is_cuda
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        precision = _PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None
        self._trainer = MixedPrecisionTrainer(model, data_loader, optimizer, precision)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictDetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._command = command
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """SGD as Detectron2 builds it, with ``SOLVER.BACKBONE_LR_FACTOR`` on the backbone."""
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: (
                cfg.SOLVER.BACKBONE_LR_FACTOR if name.startswith("backbone.") else 1.0
            ),
        )
        optimizer = torch.optim.SGD(
            params,
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            foreach=True,
        )
        return maybe_add_gradient_clipping(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Detectron2's loader with our mapper, or with mosaics (``INPUT.MOSAIC``)."""
        if cfg.INPUT.MOSAIC.PROB == 0:
            return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))
        # Read as Detectron2 does, and wrapped here: the loader and the mosaics share one copy.
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        dataset = DatasetFromList(records, copy=False)
        mapper = build_mosaic_mapper(cfg, dataset)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = build_mapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOBoxEvaluator:
        """COCO evaluation and error types; detections go to ``OUTPUT_DIR/inference``."""
        return COCOBoxEvaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate, as Detectron2 does; the results also have what it cost, under ``eval``."""
        with measure_evaluation(model) as measured:
            results = super().test(cfg, model, evaluators)
        return {**results, "eval": measured} if measured else results

    def build_writers(self) -> list[EventWriter]:
        """Write to the log, ``metrics.json``, TensorBoard, and Weights & Biases."""
        folder = self.cfg.OUTPUT_DIR
        PathManager.mkdirs(folder)
        writers: list[EventWriter] = [
            CommonMetricPrinter(self.max_iter),
            MetricsWriter(os.path.join(folder, "metrics.json")),
            TensorboardXWriter(folder),
        ]
        if WandbWriter.is_wanted(self.cfg):
            writers.append(WandbWriter(self.cfg, command=self._command))
        return writers

    def build_hooks(self) -> list[HookBase]:
        """Add measurements, batch statistics, best checkpoint, pictures and summary."""
        cfg = self.cfg
        model = self._trainer.bare_model
        trained = [p for p in model.parameters() if p.requires_grad]
        self._trainer.register_hooks([GradientNorm(trained, self.max_iter)])
        hooks = super().build_hooks()
        # Behind timer, learning rate and precise batch norm; before what saves or evaluates.
        hooks[3:3] = [
            AverageBatchNorm(model),
            TrainingMeasurements(model, cfg.SOLVER.IMS_PER_BATCH),
        ]
        if comm.is_main_process():
            writer = hooks.pop()  # last, so that it writes what the others measured
            metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
            if metric:
                hooks.append(ResumableBestCheckpointer(period, self.checkpointer, metric))
            pictures = cfg.TEST.PICTURES
            if pictures.NUM_IMAGES and cfg.DATASETS.TEST:
                own = {"num_images": pictures.NUM_IMAGES, "period": pictures.PERIOD}
                hooks.append(DrawPredictions(cfg.DATASETS.TEST[0], cfg.OUTPUT_DIR, **own))
            summary = RunSummary(cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH, self._describe)
            hooks += [writer, summary]
        return [*hooks, StopOnRequest(self.checkpointer)]

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Add hooks, before the one that ends training on request."""
        super().register_hooks(hooks)
        self._hooks.sort(key=lambda hook: isinstance(hook, StopOnRequest))

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to save and stop at the next iteration boundary; safe in signal handlers.

        :meth:`train` then raises :class:`~yolof_d2.errors.TrainingStopped`.
        """
        self._trainer.stop_request = reason

    @property
    def agreed_stop(self) -> str:
        """Why training stops after this iteration, the same on all ranks; empty if it goes on."""
        return self._trainer.agreed_stop

    def state_dict(self) -> dict[str, Any]:
        # What is saved after the last iteration counts one too many in Detectron2, and a longer
        # run that resumes from it would leave one iteration out.
        return {**super().state_dict(), "iteration": min(self.iter, self.max_iter - 1)}

    def _describe(self) -> dict[str, Any]:
        return {
            "seed": self.cfg.SEED,
            "world_size": comm.get_world_size(),
            **describe_run(self._command),
        }
