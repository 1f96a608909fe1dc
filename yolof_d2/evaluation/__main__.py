"""Show the AP50 gained by fixing each error type, of one run or of two side by side.

python -m yolof_d2.evaluation RUN_FOLDER [OTHER_RUN_FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from tabulate import tabulate

from yolof_d2.command import run_command
from yolof_d2.config import build_cfg
from yolof_d2.data import register_datasets
from yolof_d2.data.datasets import read_coco_json
from yolof_d2.errors import DataError
from yolof_d2.files import find_run_file, nan_to_none, write_text

from .error_types import ERROR_KINDS, ErrorAnalysis, analyse_errors


def analyse_runs(run_folders: Sequence[Path]) -> list[ErrorAnalysis]:
    """Analyse the last evaluation of runs, from ``config.yaml`` and detections in their folders.

    Raises:
        DataError: a folder holds no evaluated run, its ground truth cannot be read, or runs were
        evaluated on different ground truth.
        ConfigError: a config cannot be read.
    """
    truths = [_read_ground_truth(folder) for folder in run_folders]
    for folder, truth in zip(run_folders[1:], truths[1:], strict=True):
        if truth != truths[0]:
            raise DataError(
                f"{run_folders[0]} and {folder} were evaluated on different ground truth; their "
                "errors cannot be compared"
            )
    return [
        analyse_errors(truth, _read_detections(folder))
        for folder, truth in zip(run_folders, truths, strict=True)
    ]


def _read_ground_truth(run_folder: Path) -> dict[str, Any]:
    cfg = build_cfg(str(find_run_file(run_folder, "config.yaml")))
    register_datasets(cfg, eval_only=True)
    if not cfg.DATASETS.TEST:
        raise DataError(f"{run_folder}: DATASETS.TEST is empty; the run was never evaluated")
    name = cfg.DATASETS.TEST[-1]  # each one's detections replace those of the one before
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file is None:
        raise DataError(f"{run_folder}: data set {name} is not known, or has no COCO json")
    document = read_coco_json(json_file)
    missing = {"images", "annotations", "categories"} - set(document)
    if missing:
        raise DataError(f"{json_file} has no {', '.join(sorted(missing))}")
    return {key: document[key] for key in ("images", "annotations", "categories")}


def _read_detections(run_folder: Path) -> list[dict[str, Any]]:
    path = find_run_file(run_folder, "inference/coco_instances_results.json")
    try:
        detections: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); evaluate the run again") from error
    return detections


def subtract(a: ErrorAnalysis, b: ErrorAnalysis) -> ErrorAnalysis:
    """Return ``a`` minus ``b``, each figure."""
    return ErrorAnalysis(
        ap50=a.ap50 - b.ap50,
        gains={kind: a.gains[kind] - b.gains[kind] for kind in ERROR_KINDS},
        counts={kind: a.counts[kind] - b.counts[kind] for kind in ERROR_KINDS},
    )


def format_table(names: Sequence[str], analyses: Sequence[ErrorAnalysis]) -> str:
    """Format a column for each analysis: AP50, then gain and number of errors by type."""
    rows = [["AP50", *(f"{analysis.ap50:.2f}" for analysis in analyses)]]
    for kind in ERROR_KINDS:
        cells = (f"{analysis.gains[kind]:.2f} ({analysis.counts[kind]})" for analysis in analyses)
        rows.append([kind, *cells])
    return tabulate(
        rows,
        headers=["AP50 points (errors)", *names],
        disable_numparse=True,
        colalign=["left"] + ["right"] * len(names),
    )


def _report(run_folders: Sequence[Path], json_file: Path | None) -> None:
    """Print the table of one run or two, and write the same as JSON."""
    analyses = analyse_runs(run_folders)
    names = [str(folder) for folder in run_folders]
    runs = [{"run_folder": n, **asdict(a)} for n, a in zip(names, analyses, strict=True)]
    content: dict[str, Any] = {"runs": runs}
    if len(analyses) == 2:
        names.append("difference")
        analyses.append(subtract(analyses[1], analyses[0]))
        content["difference"] = asdict(analyses[2])
    sys.stdout.write(format_table(names, analyses) + "\n")
    if json_file:
        text = json.dumps(nan_to_none(content), indent=2, allow_nan=False)
        write_text(json_file, text, durable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m yolof_d2.evaluation",
        description="AP50 gained by fixing each error type, in percent. With two runs, also the "
        "second minus the first.",
    )
    parser.add_argument("run_folder", type=Path, help="OUTPUT_DIR of an evaluated run")
    parser.add_argument("other_run_folder", type=Path, nargs="?", help="one to compare with it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(arguments)
    folders = [folder for folder in (args.run_folder, args.other_run_folder) if folder]
    return run_command("yolof_d2.evaluation", lambda: _report(folders, args.json))


if __name__ == "__main__":
    sys.exit(main())
