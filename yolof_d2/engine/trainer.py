"""The trainer: Detectron2's, with our data, optimizer groups, precision and hooks."""

from __future__ import annotations

import functools
import logging
import math
import os
import weakref
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, default_setup
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.engine.train_loop import TrainerBase
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from yolof_d2.config import iter_keys, load_plugins
from yolof_d2.data import build_mapper, build_train_loader, register_datasets
from yolof_d2.errors import ConfigError
from yolof_d2.evaluation import COCOBoxEvaluator
from yolof_d2.measure.metrics_writer import (
    MetricsWriter,
    TensorboardWriter,
    restore_storage,
    storage_state,
)
from yolof_d2.measure.provenance import describe_run
from yolof_d2.measure.scalars import TrainingMeasurements, measure_evaluation
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
from .run_lock import beat, unlock_run
from .train_loop import MixedPrecisionTrainer

logger = logging.getLogger(__name__)

# Beginnings of keys that a resumed run may change. Of the training data, the samples are compared.
_MAY_CHANGE = (
    *("DATALOADER.NUM_WORKERS", "DATASETS.", "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.MAX_ITER", "SOLVER.RESUME_CHANGED", "TEST."),
    *("VIS_PERIOD", "WANDB."),
)
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def setup_run(cfg: CfgNode, launch: Launch) -> None:
    """Set up plug-ins, data sets, loggers and seed in this process; save the resolved config."""
    load_plugins(cfg.PLUGINS)  # again, because each rank is a process of its own
    register_datasets(cfg, eval_only=launch.eval_only)
    default_setup(cfg, launch)  # reads config_file and eval_only of its second argument
    if cfg.SOLVER.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="yolof_d2")


class Trainer(DefaultTrainer):
    """Trains and evaluates any Detectron2 meta-architecture the same way, for fair comparisons."""

    iter: int

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
        self._file_writers: list[MetricsWriter | TensorboardWriter] = []  # of the main rank
        self._figures: dict[str, Any] = {}  # of the checkpoint
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
        """The loader of :mod:`yolof_d2.data.stream`."""
        return build_train_loader(cfg)

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
        self._file_writers = [
            MetricsWriter(os.path.join(folder, "metrics.json")),
            TensorboardWriter(folder),
        ]
        writers: list[EventWriter] = [CommonMetricPrinter(self.max_iter), *self._file_writers]
        if WandbWriter.is_wanted(self.cfg):
            this = weakref.proxy(self)
            writers.append(
                WandbWriter(self.cfg, command=self._command, is_resumed=lambda: this.start_iter > 0)
            )
        return writers

    def build_hooks(self) -> list[HookBase]:
        """Add measurements, batch statistics, best checkpoint, pictures and summary.

        What an iteration brings is written before it is saved: a run that resumes from a checkpoint
        then has everything that came before it, and nothing that comes again.
        """
        cfg = self.cfg
        model = self._trainer.bare_model
        hooks = super().build_hooks()
        # Behind timer, learning rate and precise batch norm; before what saves or evaluates.
        hooks[3:3] = [
            AverageBatchNorm(model),
            TrainingMeasurements(model, cfg.SOLVER.IMS_PER_BATCH),
        ]
        if comm.is_main_process():
            writer = hooks.pop()
            (saver,) = (hook for hook in hooks if isinstance(hook, PeriodicCheckpointer))
            hooks.remove(saver)
            metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
            if metric:
                hooks.append(ResumableBestCheckpointer(period, self.checkpointer, metric))
            pictures = cfg.TEST.PICTURES
            if pictures.NUM_IMAGES and cfg.DATASETS.TEST:
                own = {"num_images": pictures.NUM_IMAGES, "period": pictures.PERIOD}
                hooks.append(DrawPredictions(cfg.DATASETS.TEST[0], cfg.OUTPUT_DIR, **own))
            summary = RunSummary(cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH, self._describe)
            hooks += [writer, summary, saver]
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

    @property
    def grad_norm(self) -> float:
        """Euclidean norm of all gradients of the last step, averaged over ranks, before clipping.

        Infinite or NaN where fp16 left the step out.
        """
        return self._trainer.grad_norm

    @property
    def stream_word(self) -> float:
        """What the run has seen, as :func:`~yolof_d2.data.stream.extend_word` has it; else NaN."""
        return self._trainer.stream_word if self._trainer.stream is not None else math.nan

    def train(self) -> Any:
        """Train to the end; then end the lock of ``OUTPUT_DIR``, if this process has it."""
        try:
            return super().train()
        finally:
            # Ends the loader's workers, which do not listen to signals.
            self._trainer._data_loader_iter_obj = None
            if comm.is_main_process():
                unlock_run(self.cfg.OUTPUT_DIR)

    def before_train(self) -> None:
        """Take up the stream and the figures where the last start has left them."""
        if self._trainer.stream is not None:
            self._trainer.stream.start = self.start_iter
        if self._figures:
            restore_storage(self.storage, self._figures["storage"])
            for writer in self._file_writers:
                writer.resume(self._figures["written"])
        super().before_train()

    def after_step(self) -> None:
        super().after_step()
        if comm.is_main_process():
            beat(self.cfg.OUTPUT_DIR)

    def after_train(self) -> None:
        # A run that resumes at its end has no iteration left, and TrainerBase counts one.
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        # What is saved after the last iteration counts one too many in Detectron2, and a longer
        # run that resumes from it would leave one iteration out.
        return {
            **super().state_dict(),
            "iteration": min(self.iter, self.max_iter - 1),
            "config": self.cfg.dump(),
            "figures": self._figures_state(),
        }

    def _figures_state(self) -> dict[str, Any]:
        if not self._file_writers or not hasattr(self, "storage"):
            return {}
        written = self._file_writers[0].written
        return {"storage": storage_state(self.storage), "written": written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: another config has trained the checkpoint, in a way that changes results.
        """
        self._check_config(state_dict.get("config"))
        fresh = [dict(group) for group in self._trainer.optimizer.param_groups]
        super().load_state_dict(state_dict)
        self._figures = state_dict.get("figures", {})
        # What the config says of the optimizer counts, not what the checkpoint says.
        for group, own in zip(self._trainer.optimizer.param_groups, fresh, strict=True):
            scale = own["initial_lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
            own = {key: value for key, value in own.items() if key not in ("params", "lr")}
            group.update(own, lr=group["lr"] * scale)
        self.scheduler.base_lrs = [group["initial_lr"] for group in fresh]

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint that is sound, or load ``MODEL.WEIGHTS``.

        Raises:
            ConfigError: the checkpoint has more than ``SOLVER.MAX_ITER`` iterations.
        """
        super().resume_or_load(resume)
        if self.start_iter > self.max_iter:
            raise ConfigError(
                f"the last checkpoint in {self.cfg.OUTPUT_DIR} has {self.start_iter} iterations, "
                f"SOLVER.MAX_ITER is {self.max_iter}. Raise it, or use --eval-only"
            )

    def _check_config(self, saved: str | None) -> None:
        if saved is None or self.cfg.SOLVER.RESUME_CHANGED:
            return
        before, now = (_flat(yaml.safe_load(text)) for text in (saved, self.cfg.dump()))
        changes = [
            f"{key}: {before.get(key)} then, {now.get(key)} now"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not key.startswith(_MAY_CHANGE)
        ]
        if changes:
            raise ConfigError(
                f"the checkpoint in {self.cfg.OUTPUT_DIR} was trained with another config: "
                f"{'; '.join(changes)}. Restore these, choose another OUTPUT_DIR to start anew, or "
                "go on all the same with SOLVER.RESUME_CHANGED True"
            )

    def _describe(self) -> dict[str, Any]:
        return {
            "seed": self.cfg.SEED,
            "world_size": comm.get_world_size(),
            **describe_run(self._command),
        }


def _flat(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value."""
    return {key: functools.reduce(dict.__getitem__, key.split("."), cfg) for key in iter_keys(cfg)}
