"""Measure how long the commands take with many runs: python -m experiments.command_times.

Plans a sweep cold and again, then shows status and report of as many finished runs, each in a
process of its own as a user starts it, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.spec.resolve import resolve_runs, run_record, sweep_record
from experiments.spec.sweep import load_sweep
from experiments.store.ledger import Ledger
from experiments.store.record_files import write_record
from experiments.store.records import AttemptSpan, Hardware, Progress, Submission, Summary
from experiments.store.snapshot import ROOT


def sweep_of(runs: int) -> dict[str, Any]:
    """Return a sweep of about so many runs, of five seeds each and 10 distinct models."""
    rates = [round(0.01 + 0.001 * step, 4) for step in range(max(1, runs // 50))]
    return {
        "question": "How fast are the commands?",
        "config": "configs/yolof_R_50_C5_1x.yaml",
        "axes": {
            "k": {"key": "MODEL.YOLOF.MATCHER.UNIFORM.TOPK", "values": list(range(1, 11))},
            "lr": {"key": "SOLVER.BASE_LR", "values": rates},
        },
        "baseline": {"k": "4", "lr": "0.01"},
        "seeds": [0, 1, 2, 3, 4],
    }


def pretend_finished(records: Ledger, sweep_file: Path) -> None:
    """Write what finished runs leave, without training."""
    loaded = load_sweep(str(sweep_file))
    resolved = resolve_runs(loaded, records.cache)
    runs = [run_record(loaded, each) for each in resolved]
    records.write_sweep(sweep_record(loaded, resolved), runs)
    identities = [each.id for each in resolved]
    records.write_submission(Submission(token="t", executor="slurm", job_id="1", runs=identities))
    records.claim("t", identities)
    box = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 37.7)
    summary = Summary(
        results={"bbox": {**box, **{f"AP-class {i}": 37.7 for i in range(80)}}},
        median_seconds_per_iteration=0.5, iterations=22500, commit="0" * 12,
        peak_memory_mib={"process": 4000, "allocated": 9000},
        hardware=Hardware(cpu="", gpus=["pretended"]),
    )  # fmt: skip
    progress = Progress(
        token="t", state="finished", iteration=22500, max_iteration=22500,
        seconds_per_iteration=0.5, attempts=[AttemptSpan()], peak_memory_mib={"allocated": 9000},
    )  # fmt: skip
    for number, each in enumerate(resolved):
        folder = records.run_folder(each.id)
        write_record(folder / "summary.json", summary, durable=False)
        write_record(folder / "state.json", progress, durable=False)
        course = [{"iteration": 7500 * i - 1, "bbox/AP": 30.0 + i + number % 7} for i in (1, 2, 3)]
        lines = "".join(json.dumps(record) + "\n" for record in course)
        (folder / "metrics.json").write_text(lines)


def clock(*words: str) -> float:
    """Return the seconds that a command takes."""
    command = [sys.executable, "-m", "experiments", *words]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser("python -m experiments.command_times", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="a multiple of 50")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = folder / "benchmark.yaml"
        sweep.write_text(yaml.safe_dump(sweep_of(args.runs)))
        runs = ["--runs", str(folder / "runs")]
        seconds = {"--help": min(clock("--help") for _ in range(3)), "list": clock("list")}
        seconds["plan, nothing known"] = clock(*runs, "plan", str(sweep))
        seconds["plan, nothing changed"] = clock(*runs, "plan", str(sweep))
        pretend_finished(Ledger(folder / "runs"), sweep)
        seconds["status"] = clock(*runs, "status", "benchmark")
        seconds["report without plots"] = clock(*runs, "report", "benchmark", "--no-plots")
        seconds["report"] = clock(*runs, "report", "benchmark")
    rounded = {command: round(value, 2) for command, value in seconds.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    figures = {"runs": args.runs, "machine": machine, "seconds": rounded}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
