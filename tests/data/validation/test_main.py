from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.data.validation.good import edited, without
from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.data.validation.__main__ import main


def test_command(folder, capsys):
    written = write_synthetic_dataset(folder / "s", num_train=3, num_val=1, image_size=(96, 96))
    assert main([written.train_json, written.image_folder, "--headers"]) == 0
    assert "3 images" in capsys.readouterr().out
    (folder / "data.json").write_text(json.dumps(edited(without("annotations", "area"))))
    arguments = [str(folder / "data.json"), str(folder / "images")]
    assert main(arguments) == 1
    assert "missing_for_evaluation (1)" in capsys.readouterr().out
    assert main([*arguments, "--use", "train"]) == 0


def test_command_runs_as_a_module_without_warnings(folder):
    arguments = [str(folder / "gone.json"), str(folder / "images")]
    done = subprocess.run(
        [sys.executable, "-m", "yolof_d2.data.validation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 1
    assert "gone.json" in done.stdout
    assert "RuntimeWarning" not in done.stderr
