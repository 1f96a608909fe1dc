"""One training iteration: mixed precision on any device, and a loss that must be finite."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from yolof_d2.errors import NonFiniteLossError


class MixedPrecisionTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with autocast to fp16 or bf16, on GPU or CPU.

    Detectron2's ``AMPTrainer`` needs CUDA, and scales the loss for bf16 too, which has the range of
    float32.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None,
    ):
        """Train with ``torch.float16``, ``torch.bfloat16`` or, if None, without mixed precision."""
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        if precision is not None:
            # The layout that half-precision convolution kernels want. PyTorch accepts the argument,
            # though its type stub does not list it.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=precision is torch.float16
        )
        self._loss_normalizers: list[float] = []  # of all ranks, after the last step
        self.stop_request = ""  # why this rank was asked to stop
        self.agreed_stop = ""  # the request of any rank, known to all of them in the same iteration

    def run_step(self) -> None:
        """Train on one batch.

        Raises:
            NonFiniteLossError: on every rank, before the weights are touched, when a loss of any
            rank is not finite.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(
            self.device_type, dtype=self.precision, enabled=self.precision is not None
        ):
            loss_dict = self.model(data)
        self._raise_non_finite(loss_dict, data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(loss_dict.values())).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _raise_non_finite(self, loss_dict: dict[str, Tensor], data: list[dict]) -> None:
        losses = {name: loss.item() for name, loss in loss_dict.items()}
        finding = ""
        if not all(math.isfinite(loss) for loss in losses.values()):
            images = ", ".join(
                f"{image.get('mosaic_image_ids') or image.get('image_id', '?')} "
                f"({image.get('file_name', '?')})"
                for image in data
            )
            finding = f"rank {comm.get_rank()}: {losses}, image ids: {images}"
        # Every rank learns of it, so that all stop here instead of waiting for each other. What a
        # checkpoint must hold of every rank comes in the same message, and whether to stop.
        normalizer = getattr(self.bare_model, "loss_normalizer", None)
        gathered = comm.all_gather((finding, normalizer, self.stop_request))
        self._loss_normalizers = [value for _, value, _ in gathered if value is not None]
        self.agreed_stop = next((reason for _, _, reason in gathered if reason), "")
        findings = [text for text, _, _ in gathered if text]
        if findings:
            raise NonFiniteLossError(
                f"the loss became infinite or NaN at iteration {self.iter}. {'; '.join(findings)}. "
                "The last checkpoint is untouched. Look at these images and their boxes; else "
                "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or set "
                "SOLVER.CLIP_GRADIENTS.ENABLED True, and go on with --resume."
            )

    @property
    def bare_model(self) -> torch.nn.Module:
        """The model, without the wrapper for several ranks."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model

    def state_dict(self) -> dict:
        """Return optimizer, loss scaling, and the loss normaliser of every rank.

        Detectron2's dense detectors (RetinaNet, FCOS) divide their losses by a running mean of the
        positives of their rank, a plain attribute of the model that the weights do not hold.
        """
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "loss_normalizers": self._loss_normalizers,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # Empty when the checkpoint's run had no loss scaling; absent when another trainer wrote it.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        # Empty when the model has none.
        normalizers = state_dict.get("loss_normalizers")
        if normalizers:
            ranks = comm.get_world_size()
            if len(normalizers) != ranks:  # the same batch, shared out among more or fewer
                normalizers = [sum(normalizers) / ranks] * ranks
            self._loss_normalizers = normalizers
            self.bare_model.loss_normalizer = normalizers[comm.get_rank()]
