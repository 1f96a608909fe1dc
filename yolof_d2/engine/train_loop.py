"""One training iteration: mixed precision on any device; losses and gradients must be finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from yolof_d2.data.stream import SeededDataset, StreamSampler, extend_word, seed_step
from yolof_d2.errors import DataError, NonFiniteLossError

logger = logging.getLogger(__name__)

_SKIPPED_STEPS = 100  # in a row, after which fp16 has no scale that works


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
        self.grad_norm = math.nan  # of the last step: Euclidean, before clipping
        self._skipped = 0  # steps in a row that fp16 has left out
        sampler = getattr(data_loader, "batch_sampler", None)
        self.stream = sampler if isinstance(sampler, StreamSampler) else None
        self.stream_word = 0
        self.stop_request = ""  # why this rank was asked to stop
        self.agreed_stop = ""  # the request of any rank, known to all of them in the same iteration

    def run_step(self) -> None:
        """Train on one batch.

        Raises:
            NonFiniteLossError: on every rank, before the weights are touched, when a loss or a
            gradient of any rank is not finite.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.stream is not None:
            seed_step(self.stream.seed, self.iter)
        autocast = torch.autocast(
            self.device_type, dtype=self.precision, enabled=self.precision is not None
        )
        # TorchScript rewrites a function after its first calls, so that the first iterations of a
        # resumed run would be rounded otherwise than the same of a run that was not cut.
        exact = self.device_type == "cpu" or torch.are_deterministic_algorithms_enabled()
        with autocast, torch.jit.optimized_execution(not exact):
            loss_dict = self.model(data)
        self._exchange(loss_dict, data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(loss_dict.values())).backward()
        self._check_gradients(data)
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _exchange(self, loss_dict: dict[str, Tensor], data: list[dict]) -> None:
        """Tell all ranks what each of them must know of the others; raise on all if one must."""
        losses = {name: loss.item() for name, loss in loss_dict.items()}
        finding = ""
        if not all(math.isfinite(loss) for loss in losses.values()):
            finding = f"{losses}, {_images(data)}"
        # In one message: whether to raise, so that none waits for another; what a checkpoint must
        # hold of every rank; whether to stop; and the samples.
        normalizer = getattr(self.bare_model, "loss_normalizer", None)
        digests = [sample["digest"] for sample in data] if self.stream is not None else []
        gathered = comm.all_gather((finding, normalizer, self.stop_request, digests))
        findings, normalizers, requests, parts = zip(*gathered, strict=True)
        self._raise_if_any("the loss", findings)
        self._loss_normalizers = [value for value in normalizers if value is not None]
        self.agreed_stop = next((reason for reason in requests if reason), "")
        if self.stream is not None:
            self.stream_word = extend_word(self.stream_word, [d for part in parts for d in part])

    def _check_gradients(self, data: list[dict]) -> None:
        """Compute ``grad_norm``, the same on all ranks, whose gradients are averaged by now."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) / self.grad_scaler.get_scale()
        self.grad_norm = norm.item()
        finite = math.isfinite(self.grad_norm)
        if self.grad_scaler.is_enabled():  # it leaves out such a step, and tries a lower scale
            self._skipped = 0 if finite else self._skipped + 1
            finite = self._skipped < _SKIPPED_STEPS
        if not finite:
            bad = next(
                (
                    name
                    for name, each in self.bare_model.named_parameters()
                    if each.grad is not None and not each.grad.isfinite().all()
                ),
                "their norm",
            )
            self._raise_if_any(f"a gradient ({bad})", comm.all_gather(_images(data)))

    def _raise_if_any(self, what: str, findings: Sequence[str]) -> None:
        said = [f"rank {rank}: {text}" for rank, text in enumerate(findings) if text]
        if said:
            raise NonFiniteLossError(
                f"{what} became infinite or NaN at iteration {self.iter}. {'; '.join(said)}. "
                "The step was not made, and last_checkpoint names a checkpoint with finite "
                "weights. Look at these images and their boxes; else lower SOLVER.BASE_LR, "
                "lengthen SOLVER.WARMUP_ITERS, or set SOLVER.CLIP_GRADIENTS.ENABLED True, and go "
                "on with --resume."
            )

    @property
    def bare_model(self) -> torch.nn.Module:
        """The model, without the wrapper for several ranks."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model

    def state_dict(self) -> dict:
        """Return optimizer, loss scaling, place in the stream, and every rank's loss normaliser.

        Detectron2's dense detectors (RetinaNet, FCOS) divide their losses by a running mean of the
        positives of their rank, a plain attribute of the model that the weights do not hold.
        """
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "loss_normalizers": self._loss_normalizers,
            "skipped_steps": self._skipped,
            "stream": self._stream_state(),
        }

    def _stream_state(self) -> dict[str, Any]:
        if self.stream is None:
            return {}
        return {
            "seed": self.stream.seed,
            "word": self.stream_word,
            "fingerprint": self._dataset.fingerprint,
        }

    @property
    def _dataset(self) -> SeededDataset:
        return cast(SeededDataset, cast(DataLoader, self.data_loader).dataset)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # Empty when the checkpoint's run had no loss scaling; absent when another trainer wrote it.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self._skipped = state_dict.get("skipped_steps", 0)
        self._load_stream(state_dict.get("stream"))
        # Empty when the model has none.
        normalizers = state_dict.get("loss_normalizers")
        if normalizers:
            ranks = comm.get_world_size()
            if len(normalizers) != ranks:  # the same batch, shared out among more or fewer
                normalizers = [sum(normalizers) / ranks] * ranks
            self._loss_normalizers = normalizers
            self.bare_model.loss_normalizer = normalizers[comm.get_rank()]

    def _load_stream(self, saved: dict[str, Any] | None) -> None:
        """Go on with the stream of a checkpoint; ``saved`` is None in one from before streams.

        Raises:
            DataError: the data set is another one.
        """
        if self.stream is None:
            return
        if not saved:
            logger.warning(
                "This checkpoint does not say which samples its run has seen. The stream goes on "
                "where a run of today would be, so that its first epoch has some images twice and "
                "others not at all."
            )
            return
        found = self._dataset.fingerprint
        if found != saved["fingerprint"]:
            raise DataError(
                f"the training data have fingerprint {found}, but the checkpoint was trained on "
                f"{saved['fingerprint']}: images, sizes, boxes or classes differ. Restore the "
                "annotations, or start anew in another OUTPUT_DIR"
            )
        self.stream.seed = saved["seed"]
        self.stream_word = saved["word"]


def _images(data: list[dict]) -> str:
    """Name the images of a batch."""
    names = (
        f"{image.get('mosaic_image_ids') or image.get('image_id', '?')} "
        f"({image.get('file_name', '?')})"
        for image in data
    )
    return f"image ids: {', '.join(names)}"
