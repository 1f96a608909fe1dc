"""Read and write checkpoint files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from yolof_d2.errors import UserError
from yolof_d2.files import replacing

# Raised by torch.load, safetensors and, on bytes that are no pickle, pickle.
_READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, LookupError),
    *(AttributeError, TypeError, ValueError, pickle.UnpicklingError),
)


def read_weights(path: Path, *, unsafe: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights in a checkpoint, whether or not they are under "state_dict" or "model".

    Args:
        path: a file by ``torch.save``, or ``.safetensors``.
        unsafe: also read files with Python objects in them, which may run code of the file's.
            Objects of packages that are not installed are skipped.

    Returns:
        Weights by name, without the "module." of data parallel training; and the names of all else
        in the file.

    Raises:
        UserError: the file cannot be read, or holds no weights.
    """
    content = _read(path, unsafe)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a dict of weights")
    wrappers = [key for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)]
    entries = content[wrappers[0]] if wrappers else content
    weights = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    others = [str(name) for name in entries if str(name) not in weights]
    if wrappers:
        others += [str(key) for key in content if key != wrappers[0]]
    if not weights:
        raise UserError(f"{path} holds no weights: {', '.join(others[:5])}")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights, others


def _read(path: Path, unsafe: bool) -> Any:
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r} (looked from {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        reader = _FORGIVING_PICKLE if unsafe else None
        return torch.load(path, map_location="cpu", weights_only=not unsafe, pickle_module=reader)
    except _READ_ERRORS as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is not None:
            raise UserError(
                f"{path} holds Python objects beside its weights ({found[1]}), and reading them "
                "may run code of the file's. If you trust it: --unsafe"
            ) from error
        # PyTorch's text around the reason advises to try weights_only=False.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise UserError(
            f"{path} is no checkpoint that PyTorch can read: {reason or type(error).__name__}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"to read {path}: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


class _Absent(dict):
    """Stand-in for an object whose class is not installed here; ignores its content."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass


class _ForgivingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Absent


_FORGIVING_PICKLE = SimpleNamespace(
    __name__="forgiving_pickle", Unpickler=_ForgivingUnpickler, load=pickle.load
)


def write_atomically(content: Any, path: Path) -> None:
    """Write with ``torch.save``, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
