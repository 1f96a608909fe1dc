"""Checkpoints: written whole or not at all, and refused when they do not fit the model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import get_event_storage, has_event_storage

from yolof_d2.errors import ConfigError
from yolof_d2.files import replacing, write_text


class StrictDetectionCheckpointer(DetectionCheckpointer):
    """Replace files in one step, and refuse a file that has nothing for the model.

    Detectron2's checkpointer writes in place: a process killed while it saves leaves half a file,
    or an empty ``last_checkpoint``. And it only warns of weights without a counterpart: with a file
    under other names (of another project, or without a prefix) it would train from scratch.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model and checkpointables as ``name.pth``, then name it in ``last_checkpoint``.

        Other arguments, such as ``iteration``, are saved too. While training, the time it took is
        written as the scalar ``checkpoint/seconds``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        start = time.perf_counter()
        held = {key: each.state_dict() for key, each in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **held, **kwargs}
        self.logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, f"{name}.pth"))
        for left in Path(self.save_dir).glob(".*.pth.*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with replacing(Path(self.save_dir, f"{name}.pth")) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(f"{name}.pth")
        if has_event_storage():
            seconds = time.perf_counter() - start
            get_event_storage().put_scalar("checkpoint/seconds", seconds, smoothing_hint=False)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint from which a resume starts."""
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_model(self, checkpoint: Any) -> Any:
        in_file = [name for name in checkpoint["model"] if "." in name]
        incompatible = super()._load_model(checkpoint)
        in_model = [name for name, _ in self.model.named_parameters()]
        if incompatible is not None and set(in_model) <= set(incompatible.missing_keys):
            raise ConfigError(
                f"MODEL.WEIGHTS: none of its {len(in_file)} weights ({', '.join(in_file[:2])}, "
                f"...) has a place in the model ({', '.join(in_model[:2])}, ...). Weights of other "
                "projects: python -m yolof_d2.convert --help"
            )
        return incompatible
