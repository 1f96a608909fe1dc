"""Checkpoints: written whole or not at all, verified before a run goes on from one."""

from __future__ import annotations

import os
import pickle
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from yolof_d2.errors import ConfigError
from yolof_d2.files import replacing, write_text


class StrictDetectionCheckpointer(DetectionCheckpointer):
    """Replace files in one step, verify them, and refuse one that has nothing for the model.

    Detectron2's checkpointer writes in place: a process killed while it saves leaves half a file,
    or an empty ``last_checkpoint``. It loads what a disk or a copy has changed. And it only warns
    of weights without a counterpart: with a file under other names (of another project, or without
    a prefix) it would train from scratch.
    """

    def save(self, name: str, *, resumable: bool = True, **kwargs: Any) -> None:
        """Save model and checkpointables as ``name.pth``, unless weights are infinite or NaN.

        Args:
            name: of the file, without its ending.
            resumable: name it in ``last_checkpoint``.
            **kwargs: saved too, such as ``iteration``.

        While training, the time it took is written as the scalar ``checkpoint/seconds``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        start = time.perf_counter()
        weights = self.model.state_dict()
        if ruined := _not_finite(weights):
            self.logger.error(
                "%s.pth is not saved: %d of %d weights are infinite or NaN, the first is %s",
                *(name, len(ruined), len(weights), ruined[0]),
            )
            return
        held = {key: each.state_dict() for key, each in self.checkpointables.items()}
        data = {"model": weights, **held, **kwargs}
        data["tensors"] = _count_tensors(data)
        self.logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, f"{name}.pth"))
        for left in Path(self.save_dir).glob(".*.pth.*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with replacing(Path(self.save_dir, f"{name}.pth")) as file:
            torch.save(data, file)
        if resumable:
            self.tag_last_checkpoint(f"{name}.pth")
        if has_event_storage():
            seconds = time.perf_counter() - start
            get_event_storage().put_scalar("checkpoint/seconds", seconds, smoothing_hint=False)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint from which a resume starts."""
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint that is sound, if there is any; else load ``path``.

        Checkpoints that are not sound are named in the log, with the reason.

        Raises:
            ConfigError: there are checkpoints, but none is sound.
        """
        if resume:
            # One rank looks, so that all go on from the same one.
            found = self._find_sound() if comm.is_main_process() else None
            name, problems = comm.all_gather(found)[0]
            if name:
                return self.load(os.path.join(self.save_dir, name))
            if problems:
                raise ConfigError(
                    f"cannot go on: no checkpoint in {self.save_dir} can be used. "
                    f"{'; '.join(problems)}. Restore one, or move them away to start anew"
                )
        return self.load(path, checkpointables=[])

    def _find_sound(self) -> tuple[str, list[str]]:
        """Return the first checkpoint that is sound, or "", and what is wrong with those before."""
        problems: list[str] = []
        for path in checkpoints_in(self.save_dir):
            problem = self._find_problem(path)
            if problem:
                problems.append(f"{path.name}: {problem}")
                continue
            for each in problems:
                self.logger.warning("A checkpoint cannot be used. %s", each)
            if problems or os.path.basename(self.get_checkpoint_file()) != path.name:
                self.logger.warning("Going on from %s instead", path.name)
                self.tag_last_checkpoint(path.name)
            return path.name, problems
        return "", problems

    def _find_problem(self, path: Path) -> str:
        """Return why a run cannot go on from a file; "" if it can.

        Raises:
            OSError, MemoryError, RuntimeError: it cannot be read now. That says nothing of it,
                and going on from an older one would throw iterations away.
        """
        try:
            # PyTorch does not compare the checksums that the format has.
            with zipfile.ZipFile(path) as file:
                if bad := file.testzip():
                    return f"the checksum of {bad} is wrong"
                if not any(name.endswith("/data.pkl") for name in file.namelist()):
                    return "it is an archive of another kind"
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return "it is not there"
        except (zipfile.BadZipFile, EOFError):
            return f"it is cut off, or no checkpoint ({path.stat().st_size} bytes)"
        except pickle.UnpicklingError as error:
            return f"it holds more than tensors and plain values ({str(error).splitlines()[0]})"
        if not isinstance(saved, dict) or not {"model", *self.checkpointables} <= saved.keys():
            return "it has weights at most, and no state of a training"
        if "tensors" in saved and saved.pop("tensors") != _count_tensors(saved):
            return "it is not complete"
        expected = {name: value.shape for name, value in self.model.state_dict().items()}
        weights = {name: value.shape for name, value in saved["model"].items()}
        if other := [name for name, shape in expected.items() if weights.get(name) != shape]:
            return (
                f"{len(other)} of the model's {len(expected)} weights, such as {other[0]}, are "
                "not in it, or have another shape"
            )
        if ruined := _not_finite(saved["model"]):
            return f"{len(ruined)} weights, such as {ruined[0]}, are infinite or NaN"
        return ""

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


def checkpoints_in(folder: str) -> list[Path]:
    """Return the checkpoints of a run: the one that ``last_checkpoint`` names, then the newest."""

    def rank(path: Path) -> tuple[bool, bool, int]:
        number = re.fullmatch(r"model_(\d+)", path.stem)
        return path.name == last, path.stem == "model_final", int(number[1]) if number else -1

    note = Path(folder, "last_checkpoint")
    last = note.read_text(errors="replace").strip() if note.is_file() else ""
    found = {*Path(folder).glob("model_*.pth"), *([Path(folder, last)] if last else [])}
    return sorted(found, key=rank, reverse=True)


def _not_finite(weights: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]


def _count_tensors(value: Any) -> int:
    return sum(1 for _ in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
