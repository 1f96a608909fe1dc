"""The comparison: figures worked out by hand, and nothing left out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from experiments.errors import ExperimentError
from experiments.files import write_json
from experiments.ledger import Ledger
from experiments.report import write_report
from experiments.status import status_table

PROVENANCE = {
    "commit": "abc123",
    "versions": {"python": "3.11", "torch": "2.12"},
    "hardware": {"cpu": "EPYC", "gpus": []},
}


def entry(number: int, row: str, seed: int) -> dict:
    return {
        "id": f"{number:012x}", "name": f"{row},seed={seed}", "row": row,
        "cells": {"k": row[-1]}, "seed": seed, "iterations": 100,
    }  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """k=1: AP 30 and 32; k=2: AP 35, the other failed; k=3: not submitted."""
    ledger = Ledger(tmp_path)
    runs = [entry(2 * k + seed, f"k={k}", seed) for k in (1, 2, 3) for seed in (0, 1)]
    record = {
        "sweep": "study", "question": "Which k?", "baseline": "k=1", "ranks": 8, "runs": runs,
        "seconds_per_iteration": None,
    }  # fmt: skip
    write_json(ledger.sweep_folder("study") / "sweep.json", record)
    for run, ap in zip(runs, (30.0, 32.0, 35.0), strict=False):
        folder = ledger.run_folder(run["id"])
        box = {"AP": ap, "AP50": ap + 20, "AP75": ap, "APs": None, "APm": ap, "APl": ap}
        summary = {
            "results": {"bbox": box}, "median_seconds_per_iteration": 0.25, "iterations": 100,
            "peak_memory_mib": {"process": 900.0, "allocated": 700.0}, **PROVENANCE,
        }  # fmt: skip
        write_json(folder / "summary.json", summary)
        _claim(ledger, run["id"], {"state": "finished", "evaluations": [[50, 9.0], [100, ap]]})
    _claim(ledger, runs[3]["id"], {"state": "failed", "reason": "RuntimeError: boom"})
    return ledger


def _claim(ledger: Ledger, identity: str, state: dict) -> None:
    record = {
        "token": identity, "executor": "local", "host": "another", "job_id": "1", "runs": [identity]
    }  # fmt: skip
    ledger.write_submission(record)
    ledger.claim(identity, [identity])
    content = {"token": identity, "iteration": 100, "attempts": [1, 2], **state}
    write_json(ledger.run_folder(identity) / "state.json", content)


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_deviations_differences_and_what_is_missing(ledger):
    text, _ = write_report(ledger, "study")
    # Of 30 and 32: mean 31, sample deviation sqrt(2) = 1.41.
    assert cells(text, "1") == [
        "1", "31.0 ± 1.4", "51.0 ± 1.4", "31.0 ± 1.4", "—", "31.0 ± 1.4", "31.0 ± 1.4",
        "baseline", "0.250", "700", "2 finished",
    ]  # fmt: skip
    two = cells(text, "2")
    assert (two[1], two[7], two[10]) == ("35.0", "+4.0", "1 finished, seed 1 failed")
    three = cells(text, "3")
    assert three[1] == "—" and three[7] == ""
    assert three[10] == "seed 0 not submitted, seed 1 not submitted"
    assert "3 of 6 runs have results; without: k=2,seed=1, k=3,seed=0, k=3,seed=1" in text
    assert "Commit: abc123" in text and "8 ranks a run" in text and "Seeds: 0, 1" in text
    assert "Started more than once: k=1,seed=0 2" in text


def test_the_csv_has_every_run_in_full(ledger):
    _, files = write_report(ledger, "study", plots=False)
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert len(rows) == 6
    assert (rows[0]["AP"], rows[0]["APs"], rows[0]["memory_mib"]) == ("30.0", "", "700.0")
    assert [row["state"] for row in rows].count("finished") == 3
    assert rows[3]["state"] == "failed" and rows[3]["AP"] == ""


def test_the_picture_shows_something(ledger):
    _, files = write_report(ledger, "study")
    image = Image.open(files[2]).convert("L")
    assert min(image.size) > 300 and len(image.getcolors()) > 50


def test_nothing_was_submitted(tmp_path):
    with pytest.raises(ExperimentError, match="nothing was submitted of sweep 'study'"):
        write_report(Ledger(tmp_path), "study")


def test_a_finished_run_whose_summary_is_damaged_is_shown_as_that(ledger):
    (ledger.run_folder(f"{2:012x}") / "summary.json").write_text("{")
    text, _ = write_report(ledger, "study", plots=False)
    assert cells(text, "1")[10] == "1 finished, seed 0 unreadable"


def test_the_status_table(ledger):
    table = status_table(ledger, "study")
    assert "study: 2 not submitted, 3 finished, 1 failed" in table
    (line,) = [line for line in table.splitlines() if line.startswith("k=2,seed=1")]
    assert "RuntimeError: boom" in line and "100/100" in line
    (line,) = [line for line in table.splitlines() if line.startswith("k=1,seed=1")]
    assert "32.0" in line and "finished" in line
