"""A sweep that trains in seconds on a CPU, for tests with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from experiments.spec.resolve import ConfigAnswer, ConfigRequest
from tests.experiments.records import read_json
from tests.small import ROOT, write_config
from tests.waiting import CAP

PLUGIN = '''
"""Trains as usual, but slowly before it is resumed, and badly where it is told to."""

import json
import os
import time
from pathlib import Path

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from yolof_d2.modeling import ENCODER_REGISTRY
from yolof_d2.modeling.encoder.projector import ProjectorEncoder


def add_config(cfg):
    cfg.MODEL.YOLOF.ENCODER.TROUBLE = CfgNode(
        {"SECONDS": 0.0, "CRASH_AT": -1, "CRASH_RANK": 0, "WITH": "error"}
    )


@ENCODER_REGISTRY.register()
class TroubleEncoder(ProjectorEncoder):
    @classmethod
    def from_config(cls, cfg, input_shape):
        cls.node = cfg.MODEL.YOLOF.ENCODER.TROUBLE
        resumed = (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists()
        cls.seconds = 0 if resumed else cls.node.SECONDS
        return super().from_config(cfg, input_shape)

    def forward(self, feature):
        if self.training and not feature.is_meta:
            time.sleep(self.seconds)
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == self.node.CRASH_AT and comm.get_rank() == self.node.CRASH_RANK:
                if self.node.WITH == "memory":
                    raise MemoryError("no memory for this batch")
                if self.node.WITH == "kill":
                    os.kill(os.getpid(), 9)
                raise RuntimeError("the encoder met a batch it cannot take")
        return super().forward(feature)
'''


SLOW = {"SOLVER.MAX_ITER": 40, "SOLVER.STEPS": [30]}  # with ``SECONDS=1.0``: time to act


@dataclass(frozen=True)
class Tiny:
    """Files of the tiny sweeps in one folder."""

    folder: Path

    def sweep(self, name: str = "tiny", *, ranks: int = 1, **content: object) -> str:
        """Write a sweep file; return its path."""
        values: dict = {
            "question": "Does it run?",
            "config": str(self.folder / "model.yaml"),
            "runs": {"a": {}},
            "baseline": "a",
            "resources": {"ranks": ranks},
            **content,
        }
        values["overrides"] = {
            "SOLVER.MAX_ITER": 6,
            "SOLVER.STEPS": [4],
            "SOLVER.IMS_PER_BATCH": 2 * ranks,
            **values.get("overrides", {}),
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    def trouble(self, **node: object) -> dict[str, object]:
        """Return overrides that choose the plug-in encoder with faults."""
        keys = {f"MODEL.YOLOF.ENCODER.TROUBLE.{key}": value for key, value in node.items()}
        return {
            "PLUGINS": [str(self.folder / "trouble.py")],
            "MODEL.YOLOF.ENCODER.NAME": "TroubleEncoder",
            "MODEL.YOLOF.ENCODER.PROJECTOR.NUM_CHANNELS": 16,
            **keys,
        }

    def cluster(self, name: str = "here", **content: object) -> str:
        """Write a cluster file; return its path."""
        values = {"executor": "local", "notice_seconds": 20, "time_limit_minutes": 60, **content}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)


def make_tiny(folder: Path) -> Tiny:
    """Write data, config and plug-in."""
    write_config(folder)
    (folder / "trouble.py").write_text(PLUGIN)
    return Tiny(folder)


def make_runs(folder: Path, shared: Path) -> Path:
    """Make a folder of runs, with what those of all tests share."""
    folder.mkdir()
    for name in ("cache", "code"):  # a config takes a start of torch, the code a compilation
        (shared / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(shared / name)
    return folder


def resolve_here(requests: list[ConfigRequest]) -> list[ConfigAnswer]:
    """Resolve in this process, which has torch already."""
    from experiments.spec.build_configs import resolve

    answers = [json.dumps(resolve(request).model_dump()) for request in requests]
    return [ConfigAnswer.model_validate_json(answer) for answer in answers]


def start(runs: Path, *words: object, cwd: Path = ROOT) -> subprocess.Popen:
    """Start ``python -m experiments`` as a user does, in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "--runs", str(runs), *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def experiments(runs: Path, *words: object, status: int = 0) -> str:
    """Run a command to its end; return its output."""
    process = start(runs, *words)
    said, _ = process.communicate(timeout=CAP)
    assert process.returncode == status, said[-3000:]
    return said


def run_folders(runs: Path, sweep: str = "tiny") -> dict[str, Path]:
    """Return name -> folder of the runs of a sweep."""
    record = read_json(runs / "sweeps" / sweep / "sweep.json")
    return {run["name"]: runs / "all" / run["id"] for run in record["runs"]}


def state(folder: Path) -> dict:
    """Return ``state.json`` of a run, empty if there is none."""
    path = folder / "state.json"
    return read_json(path) if path.exists() else {}


def is_training(folder: Path) -> bool:
    """Whether the run says that it trains."""
    return state(folder).get("state") == "running"


def checkpoint_iteration(folder: Path) -> int:
    """Return the last iteration of the checkpoint."""
    name = (folder / "last_checkpoint").read_text()
    return torch.load(folder / name, weights_only=False)["trainer"]["iteration"]


def rank_processes(folder: Path) -> list[int]:
    """Return the rank processes of a local job, given its controller."""
    controller = state(folder)["job_id"]
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text()
    return [int(pid) for pid in children.split()]
