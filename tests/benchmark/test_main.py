from __future__ import annotations

import json
import math

import pytest

from yolof_d2.benchmark.__main__ import main

CONFIG = "configs/quick/synthetic.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such.yaml"], "no/such.yaml"),
        ([CONFIG, "--size", 8, 64], "--size is 8 64"),
        ([CONFIG, "--iterations", 0], "--iterations is 0, expected 1"),
        ([CONFIG, "--size", 64, 64, "--boxes", 10**6], "ask for fewer"),
        ([CONFIG, "--opts", "MODEL.DEVICE", "mps"], "expected 'cpu' or 'cuda'"),
        ([CONFIG, "--opts", "SOLVER.BAZE_LR", 1], "SOLVER.BASE_LR"),
        ([CONFIG, "--opts", "MODEL.DEVICE"], "expected KEY VALUE pairs"),
    ],
)
def test_a_mistake_ends_in_one_line(tmp_path, caplog, words, said):
    assert main(["--output", str(tmp_path / "out"), *map(str, words)]) == 1
    (line,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("error: ") and said in line and "\n" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_leaves_record_table_and_pictures(tmp_path, capsys):
    words = [CONFIG, "--size", 64, 64, "--iterations", 1, "--warmup", 0, "--boxes", 5]
    words += ["--output", tmp_path, "--opts", "MODEL.DEVICE", "cpu"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    names = ["benchmark.json", "benchmark.md", "benchmark.png", "benchmark.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert str(tmp_path / "benchmark.json") in said
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["format"] == 1
    assert math.isfinite(record["models"][0]["training"]["median_seconds"])
