from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.run import ROOT

FAULTS = """
files:
  parts.py:
    tests: [test_parts.py]
    faults:
      - {breaks: sums, old: a + b, new: a - b}
      - {breaks: signs, old: "-a", new: a}
      - {breaks: never ends, old: return 3, new: "while True: pass"}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Code of which one function is not tested."""
    code = "def add(a, b):\n    return a + b\n\n\ndef minus(a):\n    return -a\n\n\n"
    (tmp_path / "parts.py").write_text(code + "def three():\n    return 3\n")
    test = "from parts import add, three\n\n\ndef test():\n    assert add(1, 2) == three() == 3\n"
    (tmp_path / "test_parts.py").write_text(test)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run(checkout: Path, faults: str, *words: str) -> tuple[int, list[str]]:
    file = checkout / "faults.yaml"
    file.write_text(faults)
    command = [sys.executable, "-m", "tests.mutants.run", "--root", str(checkout)]
    command += ["--faults", str(file), *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_fault_is_caught_or_survives_and_the_code_stays(checkout):
    before = (checkout / "parts.py").read_text()
    status, lines = run(checkout, FAULTS, "--timeout", "10")
    assert [line.split() for line in lines[:3]] == [
        ["caught", "parts.py:2", "sums"],
        ["SURVIVED", "parts.py:6", "signs"],
        ["time-out", "parts.py:10", "never", "ends"],
    ]
    assert lines[3].startswith("2 of 3 caught (66.7%") and status == 1
    assert (checkout / "parts.py").read_text() == before
    assert run(checkout, FAULTS, "-k", "sums")[0] == 0


def test_an_entry_that_no_longer_fits_is_an_error(checkout):
    for old, new, verdict in (
        ("old: a + b", "old: a * b", "MOVED"),
        ("old: a + b", "old: a", "MOVED"),
        ("breaks: sums", "breaks: sums, survives: why", "CAUGHT"),
    ):
        status, lines = run(checkout, FAULTS.replace(old, new), "-k", "sums")
        assert status == 1 and lines[0].startswith(verdict) and lines[-1].startswith(verdict)


def test_no_fault_is_planted_where_the_tests_fail_without(checkout):
    (checkout / "test_parts.py").write_text("def test():\n    assert False\n")
    status, lines = run(checkout, FAULTS)
    assert status == 2 and lines[-1] == "The tests must pass before a fault is planted"
