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
      - {breaks: signs, old: "-a", new: a, survives: why}
      - {breaks: nothing; it survives, old: a + b, new: a - b, survives: why}
      - {breaks: what was there, old: a * b, new: a}
      - {breaks: what is there twice, old: return a, new: return b}
  more.py:
    tests: [test_parts.py]
    faults:
      - {breaks: its end, old: return 3, new: "while True: pass"}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Code of which one function is not tested."""
    (tmp_path / "parts.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef minus(a):\n    return -a\n\n\n"
        "def same(a):\n    return a\n"
    )
    (tmp_path / "more.py").write_text("def three():\n    return 3\n")
    (tmp_path / "test_parts.py").write_text(
        "from more import three\nfrom parts import add\n\n\n"
        "def test():\n    assert add(1, 2) == three() == 3\n"
    )
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run(checkout: Path, *words: str) -> tuple[int, list[str]]:
    file = checkout / "faults.yaml"
    file.write_text(FAULTS)
    command = [sys.executable, "-m", "tests.mutants.run", "--root", str(checkout)]
    done = subprocess.run(
        [*command, "--faults", str(file), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_what_becomes_of_each_fault_and_the_code_stays(checkout):
    before = (checkout / "parts.py").read_text()
    status, lines = run(checkout, "-k", "parts.py")
    assert [line.split()[:2] for line in lines[:6]] == [
        ["caught", "parts.py:2"],
        ["SURVIVED", "parts.py:6"],
        ["survives", "parts.py:6"],
        ["CAUGHT", "parts.py:2"],
        ["MOVED", "parts.py:?"],
        ["MOVED", "parts.py:?"],
    ]
    assert lines[6].startswith("1 of 6 caught (16.7%") and status == 1
    assert [line.split(":")[0] for line in lines[7:]] == ["MOVED", "CAUGHT"]
    assert (checkout / "parts.py").read_text() == before


def test_tests_that_never_end_have_caught_the_fault(checkout):
    status, lines = run(checkout, "-k", "its end", "--timeout", "3")
    assert lines[0].split() == ["time-out", "more.py:2", "its", "end"] and status == 0


def test_no_fault_is_planted_where_the_tests_fail_without(checkout):
    (checkout / "test_parts.py").write_text("def test():\n    assert False\n")
    status, lines = run(checkout)
    assert status == 2 and lines[-1] == "The tests must pass before a fault is planted"
