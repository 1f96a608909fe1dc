"""The comparison: figures worked out by hand, and nothing left out."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from experiments.errors import ExperimentError
from experiments.jobs.status import status_table
from experiments.report.write import write_report
from experiments.store.ledger import Ledger
from tests.experiments.finished import CONFIG, FinishedSweep, changed, old_summary, summary


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """k=1: AP 30 and 32; k=2: AP 35, the other failed; k=3: not submitted."""
    sweep = FinishedSweep(tmp_path)
    for k, seed, ap in ((1, 0, 30.0), (1, 1, 32.0), (2, 0, 35.0)):
        points = [[50, 9.0], [100, ap]]
        config = changed(CONFIG, MODEL__YOLOF__MATCHER__TOPK=k)
        overrides = {"MODEL.YOLOF.MATCHER.TOPK": k}
        sweep.add(
            {"k": str(k)}, seed, old_summary(ap), config=config, overrides=overrides,
            evaluations=points, attempts=[{"token": "a"}, {"token": "b"}],
        )  # fmt: skip
    sweep.add({"k": "2"}, 1, state="failed", reason="RuntimeError: boom")
    for seed in (0, 1):
        sweep.add({"k": "3"}, seed)
    return sweep.close()


def cells(text: str, first: str, table: int = 0) -> list[str]:
    """Return the cells of the line that begins so, in a table that has it."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


def csv_of(files: list) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[1].read_text())))


def test_means_deviations_differences_and_what_is_missing(ledger):
    text, _ = write_report(ledger, "study")
    # Of 30 and 32: mean 31, sample deviation sqrt(2) = 1.41.
    assert cells(text, "1") == [
        "1", "31.0 ± 1.4", "51.0 ± 1.4", "31.0 ± 1.4", "—", "31.0 ± 1.4", "31.0 ± 1.4",
        "baseline", "—", "0.250", "900", "—", "2 seeds",
    ]  # fmt: skip
    two = cells(text, "2")
    # Seed 0 is all that both have: 35 - 30, and no interval.
    assert (two[1], two[7], two[12]) == ("35.0", "+5.0, n=1", "1 of 2 seeds; seed 1 failed")
    three = cells(text, "3")
    assert (three[1], three[7]) == ("—", "—")
    assert three[12] == "0 of 2 seeds; seeds 0, 1 not submitted"
    assert "3 of 6 runs have results; without: k=2,seed=1, k=3,seed=0, k=3,seed=1" in text
    assert "Commit: abc123" in text and "8 ranks a run" in text and "Seeds: 0, 1" in text
    assert "Evaluated on: coco_val (sha256 bbbbbbbb)" in text
    assert "Started more than once: k=1,seed=0 2" in text


def test_all_runs_are_listed_with_hash_state_starts_and_requeues(tmp_path):
    sweep = FinishedSweep(tmp_path)
    attempts = [{"token": "a"}, {"token": "a"}, {"token": "b"}]
    sweep.add({"k": "1"}, 0, summary(30.0), attempts=attempts)
    sweep.add({"k": "2"}, 0, state="failed", reason="RuntimeError: boom")
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "k=1,seed=0") == [
        "k=1,seed=0", "`000000000000`", "finished", "3", "1", "2026-11-25T03:42:10Z", "30.00",
    ]  # fmt: skip
    assert cells(text, "k=2,seed=0")[2:5] == ["failed: RuntimeError: boom", "1", "0"]
    assert "Started more than once: k=1,seed=0 3 (1 requeued)" in text


def test_differences_are_paired_by_seed_and_have_an_interval(tmp_path):
    sweep = FinishedSweep(tmp_path)
    for seed, ap in enumerate((30.0, 40.0, 50.0)):
        sweep.add({"k": "1"}, seed, summary(ap))
        sweep.add({"k": "2"}, seed, summary(ap + seed + 1))
    text, _ = write_report(sweep.close(), "study", plots=False)
    # 1, 2, 3: 2 +- 4.303 * 1 / sqrt(3), though the rows themselves scatter by 10.
    assert cells(text, "2")[7] == "+2.0 [-0.5, +4.5], n=3"
    assert cells(text, "1")[1] == "40.0 ± 10.0"


def test_a_seed_without_a_figure_is_not_averaged_away(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"}, 0, summary(30.0))
    sweep.add({"k": "1"}, 1, summary(31.0, results__bbox__AP=None))  # it predicted nothing
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "1")[1] == "30.0 (1 of 2)"


def test_the_table_is_the_csv_rounded_and_the_csv_is_the_summaries(tmp_path):
    sweep = FinishedSweep(tmp_path)
    aps = (33.438837441562505, 24.441898193021608)
    folders = [sweep.add({"k": str(k)}, 0, summary(ap)) for k, ap in enumerate(aps)]
    text, files = write_report(sweep.close(), "study", plots=False)
    for folder, line in zip(folders, csv_of(files), strict=True):
        content = json.loads((folder / "summary.json").read_text())
        assert line["AP"] == repr(content["results"]["bbox"]["AP"])
        row = cells(text, line["k"])
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        assert row[1:7] == [f"{float(line[name]):.1f}" for name in names]
        assert row[8:12] == [
            f"{float(line['images_per_second']):.1f}",
            f"{float(line['seconds_per_iteration']):.3f}",
            f"{float(line['memory_mib']):.0f}",
            f"{float(line['eval_seconds']):.1f}",
        ]


def test_errors_and_positives_stand_beside_their_differences(tmp_path):
    sweep = FinishedSweep(tmp_path)
    for k, missed, positives in (("1", 4.0, 7.0), ("2", 2.5, 8.5)):
        keys = {"results__errors__missed": missed, "matching__positives_per_gt_small": positives}
        sweep.add({"k": k}, 0, summary(30.0, matching__ignored_anchor_share=0.0125, **keys))
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "1", 1)[6] == "4.0" and cells(text, "2", 1)[6] == "2.5 (-1.5)"
    assert cells(text, "2", 2)[2] == "8.5" and cells(text, "2", 2)[6] == "1.25"


def test_runs_of_another_schedule_are_refused_unless_told(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"}, 0, summary(30.0))
    sweep.add({"k": "2"}, 0, summary(31.0), config=changed(CONFIG, SOLVER__MAX_ITER=200))
    ledger = sweep.close()
    with pytest.raises(ExperimentError) as refused:
        write_report(ledger, "study", plots=False)
    mix = "images seen in training: 1,600 by k=1,seed=0; 3,200 by k=2,seed=0"
    assert mix in str(refused.value) and "report study --allow-mixed" in str(refused.value)
    assert not (sweep.folder / "report.md").exists()
    text, _ = write_report(ledger, "study", plots=False, allow_mixed=True)
    head = text[: text.index("| k")]
    assert "> **Warning:**" in head and mix in head
    assert cells(text, "2")[7] == "+1.0, n=1"


def test_knobs_are_listed_with_their_part_in_the_question(ledger):
    text, _ = write_report(ledger, "study", plots=False)
    assert cells(text, "MODEL.YOLOF.MATCHER.TOPK") == [
        "MODEL.YOLOF.MATCHER.TOPK", "question", "1", "2", "4",
    ]  # fmt: skip


def test_many_rows_share_a_line_of_a_knob(tmp_path):
    sweep = FinishedSweep(tmp_path)
    for k in range(12):
        config = changed(CONFIG, SOLVER__BASE_LR=0.5 if k == 7 else 0.12)
        sweep.add({"k": str(k)}, 0, summary(30.0 + k), config=config)
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "SOLVER.BASE_LR") == [
        "SOLVER.BASE_LR", "also differs", "0.12 (11 rows); 0.5 (k=7)",
    ]  # fmt: skip


def test_files_of_a_whole_report(ledger):
    text, files = write_report(ledger, "study")
    folder = ledger.sweep_folder("study")
    assert [file.relative_to(folder).as_posix() for file in files] == [
        "report.md", "report.csv", "report.tex", "report.html", "plots/ap_by_size.png",
        "plots/ap_over_iterations.png", "plots/ap_against_memory.png", "report.png",
    ]  # fmt: skip
    assert files[0].read_text() == text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (folder / line[line.index("(") + 1 : -1]).exists()
    assert "Not drawn, as no run has measured it: AP against speed." in text
    assert min(Image.open(files[-1]).size) > 300
    page = ET.fromstring(files[3].read_text())
    assert len(list(page.iter("img"))) == 3
    table = [[cell.text for cell in line] for line in next(page.iter("table")).iter("tr")]
    assert [table[0][:2], table[1][:2]] == [["k", "AP"], ["1", "31.0 ± 1.4"]]
    assert r"\toprule" in files[2].read_text() and r"31.0 $\pm$ 1.4" in files[2].read_text()


def test_no_plots_means_none(ledger):
    text, files = write_report(ledger, "study", plots=False)
    assert len(files) == 4 and "![" not in text and "Not drawn" not in text


@pytest.mark.parametrize("state", [{}, {"state": "running"}])
def test_one_run_that_is_not_finished(tmp_path, state):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"run": "only"}, 0, **state)
    text, files = write_report(sweep.close(), "study")
    assert cells(text, "only")[1:] == [*["—"] * 6, "baseline", *["—"] * 4, cells(text, "only")[-1]]
    assert cells(text, "only")[-1] == ("running" if state else "not submitted")
    assert "0 of 1 runs have results" in text and len(files) == 4
    assert [line["AP"] for line in csv_of(files)] == [""]


def test_the_csv_has_every_run(ledger):
    _, files = write_report(ledger, "study", plots=False)
    lines = csv_of(files)
    assert [line["state"] for line in lines] == [
        "finished", "finished", "finished", "failed", "not submitted", "not submitted",
    ]  # fmt: skip
    assert (lines[0]["AP"], lines[0]["APs"], lines[0]["memory_mib"]) == ("30.0", "", "900.0")


def test_nothing_was_submitted(tmp_path):
    with pytest.raises(ExperimentError, match="nothing was submitted of sweep 'study'"):
        write_report(Ledger(tmp_path), "study")


@pytest.mark.parametrize("file", ["summary.json", "run.json", "attempts/1.json"])
def test_a_finished_run_with_a_damaged_file_is_shown_as_that(tmp_path, file):
    sweep = FinishedSweep(tmp_path)
    folder = sweep.add({"k": "1"}, 0, summary(30.0))
    sweep.add({"k": "1"}, 1, summary(32.0))
    (folder / file).write_text("{")
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "1")[1] == "32.0"
    assert cells(text, "1")[12] == "1 of 2 seeds; seed 0 unreadable"
    assert file in cells(text, "k=1,seed=0")[2]


def test_a_report_without_plots_imports_nothing_slow(ledger):
    code = (
        "import sys; from pathlib import Path; from experiments.store.ledger import Ledger\n"
        "from experiments.report.write import write_report\n"
        f"write_report(Ledger(Path({str(ledger.root)!r})), 'study', plots=False)\n"
        "slow = {'torch', 'numpy', 'scipy', 'matplotlib', 'wandb'} & set(sys.modules)\n"
        "sys.exit(bool(slow))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_status_table(ledger):
    table = status_table(ledger, "study")
    assert "study: 2 not submitted, 3 finished, 1 failed" in table
    (line,) = [line for line in table.splitlines() if line.startswith("k=2,seed=1")]
    assert "RuntimeError: boom" in line and "100/100" in line
    (line,) = [line for line in table.splitlines() if line.startswith("k=1,seed=1")]
    assert "32.0" in line and "finished" in line
