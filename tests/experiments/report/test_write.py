"""Files of a report."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from experiments.errors import ExperimentError
from experiments.report.write import write_report
from tests.experiments.finished import CONFIG, cells, changed, csv_of, summary


def test_runs_of_another_schedule_are_refused_unless_told(sweep):
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
def test_one_run_that_is_not_finished(sweep, state):
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


@pytest.mark.parametrize("file", ["summary.json", "run.json", "attempts/1.json"])
def test_a_finished_run_with_a_damaged_file_is_shown_as_that(sweep, file):
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
