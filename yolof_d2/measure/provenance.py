"""Provenance of a figure: code, versions, machine, command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("yolof_d2", "detectron2", "torch", "torchvision"),
    *("numpy", "pycocotools", "faster-coco-eval"),
)


def describe_run(command: str = "") -> dict[str, Any]:
    """Describe code, versions, hardware, command and time as plain JSON; None where unknown.

    ``command`` stands for the command line of this process.
    """
    own = shlex.join([os.path.basename(sys.executable), *_script(), *sys.argv[1:]])
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return {
        "commit": _git_commit(),
        "command": command or own,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "hardware": {
            "cpu": _cpu_name(),
            "cpus": len(affinity(0)) if affinity else os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _script() -> list[str]:
    """Return the script as it was named; for ``python -m``, the module instead of its file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or os.path.basename(sys.argv[0]) != os.path.basename(spec.origin or ""):
        return [sys.argv[0]]
    return ["-m", spec.name.removesuffix(".__main__")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git_commit() -> str | None:
    """Return this checkout's commit, ``-dirty`` if it has changes; None outside git.

    A snapshot that a sweep runs from has a note of its own, though it may lie inside a checkout.
    """
    note = Path(__file__).parents[2] / "snapshot.json"
    if note.is_file():
        state = json.loads(note.read_text())
        return state["commit"] and state["commit"][:12] + ("-dirty" if state["dirty"] else "")
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
