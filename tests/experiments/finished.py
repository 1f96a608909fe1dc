"""Make sweeps with the files of finished runs, without training."""

from __future__ import annotations

import copy
import csv
import json
import random
from pathlib import Path
from typing import Any

from experiments.report.outcomes import Comparison, compare, read_outcomes
from experiments.store.ledger import Ledger
from experiments.store.records import Submission
from tests.experiments.records import write_json

SOLVER = {"MAX_ITER": 100, "IMS_PER_BATCH": 16, "BASE_LR": 0.12}
TESTED = {"SCORE_THRESH_TEST": 0.05, "TOPK_CANDIDATES_TEST": 1000, "NMS_THRESH_TEST": 0.5}
CONFIG = {
    "MODEL": {
        "META_ARCHITECTURE": "YOLOF",
        "YOLOF": {
            "ENCODER": {"NAME": "DilatedEncoder", "DILATIONS": [2, 4, 6, 8]},
            "MATCHER": {"TOPK": 4},
            **TESTED,
            "NMS_THRESH_TEST": 0.6,
        },
        "RETINANET": {"NUM_CONVS": 4, "NORM": "", **TESTED},
        "FCOS": {"NUM_CONVS": 4, "NORM": "GN", **TESTED, "NMS_THRESH_TEST": 0.6},
    },
    "SOLVER": {**SOLVER, "CHECKPOINT_PERIOD": 5000},
    "DATASETS": {"TRAIN": ["coco_train"], "TEST": ["coco_val"]},
    "WANDB": {"ENABLED": False, "PROJECT": "yolof_d2"},
    "OUTPUT_DIR": "output",
    "SEED": 0,
}
DATA = {
    "coco_train": {"bytes": 9, "sha256": "a" * 64},
    "coco_val": {"bytes": 3, "sha256": "b" * 64},
}
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")


def changed(tree: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a copy with keys changed, in which ``__`` stands for a dot."""
    tree = copy.deepcopy(tree)
    for key, value in keys.items():
        *parents, leaf = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return tree


def summary(ap: float = 37.5, **keys: Any) -> dict[str, Any]:
    """Return a summary in which no two figures are equal, apart from AP."""
    draw = random.Random(ap)
    sizes = ("", "_small", "_medium", "_large")
    names = ("AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    memory = ("process", "allocated", "reserved")
    whole = {
        "iterations": 100,
        "batch_size": 16,
        "median_seconds_per_iteration": draw.random(),
        "training_minutes": draw.uniform(10, 20),
        "images_per_second": draw.uniform(50, 60),
        "data_time_share": draw.random(),
        "peak_memory_mib": {name: draw.uniform(4000, 9000) for name in memory},
        "evaluation": {
            "seconds": draw.uniform(60, 90),
            "images_per_second": draw.uniform(100, 120),
            "peak_memory_mib": {name: draw.uniform(1000, 2000) for name in memory},
        },
        "checkpoint_seconds": draw.random(),
        "matching": {
            **{f"positives_per_gt{size}": draw.uniform(4, 9) for size in sizes},
            **{
                f"{name}_anchor_share": draw.random()
                for name in ("positive", "ignored", "contested")
            },
        },
        "results": {
            "bbox": {
                "AP": ap,
                **{name: draw.uniform(10, 60) for name in names},
                **{f"AP-{name}": draw.uniform(10, 60) for name in ("cat", "traffic light")},
            },
            "errors": {name: draw.uniform(0, 9) for name in ERRORS},
        },
        "seed": 0,
        "world_size": 8,
        "commit": "abc123",
        "command": "python train_net.py --num-gpus 8",
        "versions": {"python": "3.11", "torch": "2.12"},
        "hardware": {"cpu": "EPYC", "cpus": 64, "gpus": ["A100"] * 8},
        "started": "2026-11-25T03:42:10Z",
    }
    return changed(whole, **keys)


def old_summary(ap: float) -> dict[str, Any]:
    """Return a summary of a CPU run from before speed, matches and errors were measured."""
    box = {"AP": ap, "AP50": ap + 20, "AP75": ap, "APs": None, "APm": ap, "APl": ap}
    return {
        "iterations": 100,
        "median_seconds_per_iteration": 0.25,
        "peak_memory_mib": {"process": 900.0},
        "results": {"bbox": box},
        "seed": 0,
        "commit": "abc123",
        "versions": {"python": "3.11"},
        "hardware": {"cpu": "EPYC", "gpus": []},
    }


class FinishedSweep:
    """Writes a sweep run by run; :meth:`close` writes ``sweep.json``."""

    def __init__(self, root: Path, name: str = "study", question: str = "Which k?"):
        self.ledger = Ledger(root)
        self.name = name
        self.question = question
        self.runs: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        """Of the reports."""
        return self.ledger.sweep_folder(self.name)

    def add(
        self,
        cells: dict[str, str],
        seed: int = 0,
        done: dict[str, Any] | None = None,
        *,
        config: dict[str, Any] = CONFIG,
        overrides: dict[str, Any] | None = None,
        config_file: str = "model.yaml",
        data: dict[str, Any] | None = DATA,
        **state: Any,
    ) -> Path:
        """Add a run; without a summary it has not finished, without a state it never was claimed.

        Returns:
            Its folder.
        """
        row = cells.get("run") or ",".join(f"{axis}={cell}" for axis, cell in cells.items())
        identity = f"{len(self.runs):012x}"
        self.runs.append(
            {"id": identity, "name": f"{row},seed={seed}", "row": row, "cells": cells, "seed": seed,
             "iterations": 100}
        )  # fmt: skip
        folder = self.ledger.run_folder(identity)
        record = {"config": changed(config, SEED=seed), "overrides": overrides or {}}
        write_json(folder / "run.json", {**record, "config_file": config_file, "ranks": 8})
        if done is not None:
            done = {"stream": f"{seed:012x}", **done}  # the same samples in all rows
            (folder / "summary.json").write_text(json.dumps(done, indent=2))
            state = {"state": "finished", **state}
        if state:
            self._claim(identity, state)
        if done is not None and data is not None:
            last = len(state.get("attempts", [None]))
            write_json(folder / "attempts" / f"{last}.json", {"data": data})
        return folder

    def _claim(self, identity: str, state: dict[str, Any]) -> None:
        whose = {"token": identity, "executor": "local", "host": "another", "job_id": "1"}
        self.ledger.write_submission(Submission(**whose, runs=[identity]))
        self.ledger.claim(identity, [identity])
        content = {"token": identity, "iteration": 100, "attempts": [{"token": identity}], **state}
        write_json(self.ledger.run_folder(identity) / "state.json", content)

    def close(self, baseline: str | None = None) -> Ledger:
        """Write ``sweep.json``; the baseline is the first row unless named."""
        record = {
            "sweep": self.name,
            "question": self.question,
            "baseline": baseline or self.runs[0]["row"],
            "ranks": 8,
            "runs": self.runs,
            "seconds_per_iteration": None,
        }
        write_json(self.folder / "sweep.json", record)
        return self.ledger

    def compare(self) -> Comparison:
        """Write ``sweep.json``; read all runs back as a report does."""
        record = self.close().read_sweep(self.name)
        return compare(record, read_outcomes(self.ledger, record)[0])


def cells(text: str, first: str, table: int = 0) -> list[str]:
    """Return the cells of the line that begins so, in a Markdown table that has it."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


def csv_of(files: list[Path]) -> list[dict[str, str]]:
    """Return the lines of the CSV among the files of a report."""
    return list(csv.DictReader(files[1].open()))
