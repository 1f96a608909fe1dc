"""train_net.py as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2 import model_zoo

from tests.small import ROOT, data_keys, read_lines, write_data
from tests.waiting import CAP, run_script, wait_until
from yolof_d2.data.synthetic import SyntheticDataset

SIZE = 96
CONFIG = str(ROOT / "configs" / "quick" / "synthetic.yaml")
NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32]
NARROW += ["MODEL.RESNETS.WIDTH_PER_GROUP", 8]
COMMON = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0]
COMMON += ["INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", SIZE, "SEED", 1]
SMALL = [*COMMON, *NARROW, "MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS", 64]
SMALL += ["MODEL.YOLOF.ENCODER.DILATED.DILATIONS", "[1, 2]"]
SMALL += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[12, 24, 48, 80]]"]


def train_net(*words: object, config: str = CONFIG) -> subprocess.CompletedProcess:
    """Run the command; stdout and stderr come back together, as on a terminal."""
    return run_script(ROOT / "train_net.py", "--config-file", config, *words, cwd=ROOT)


def succeed(*words: object, config: str = CONFIG) -> str:
    done = train_net(*words, config=config)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def evaluations(folder: Path) -> list[dict]:
    return [line for line in read_lines(folder / "metrics.json") if "bbox/AP50" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SyntheticDataset:
    return write_data(tmp_path_factory.mktemp("data"), 160, 24, image_size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, list[object]]:
    """Folder and overrides of a run that has learnt something."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*SMALL, *data_keys(data), "OUTPUT_DIR", folder, "SOLVER.WARMUP_ITERS", 20]
    schedule = ["SOLVER.MAX_ITER", 160, "SOLVER.STEPS", "(120,)", "TEST.EVAL_PERIOD", 40]
    succeed(*words, *schedule)
    return folder, words


# What works


def test_ap_rises_when_trained_for_real(trained):
    folder, _ = trained
    first, *_, last = [line["bbox/AP50"] for line in evaluations(folder)]
    assert last > 20 and last > first + 10
    for name in ("model_final.pth", "model_best.pth", "summary.json", "config.yaml"):
        assert (folder / name).is_file()


def test_eval_only_gives_the_ap_of_the_end_of_training(trained, tmp_path):
    folder, words = trained
    expected = evaluations(folder)[-1]["bbox/AP"]
    weights = ["MODEL.WEIGHTS", folder / "model_final.pth"]
    said = succeed("--eval-only", *words, *weights, "OUTPUT_DIR", tmp_path)
    copied = said.split("copypaste: AP,AP50")[1].split("copypaste: ")[1].split(",")[0]
    assert float(copied) == pytest.approx(expected, abs=1e-3)


def test_a_run_goes_on_with_resume_and_its_saved_config_is_a_config(trained, tmp_path):
    folder, _ = trained
    run = tmp_path / "copy"
    run.mkdir()
    for name in ("model_final.pth", "config.yaml"):
        (run / name).write_bytes((folder / name).read_bytes())
    (run / "last_checkpoint").write_text("model_final.pth")
    more = ["SOLVER.MAX_ITER", 164, "OUTPUT_DIR", run]
    said = succeed("--resume", *more, config=str(run / "config.yaml"))
    assert "Starting training from iteration 160" in said
    saved = torch.load(run / "model_final.pth", weights_only=False)
    assert saved["trainer"]["iteration"] == 163
    assert evaluations(run)[-1]["bbox/AP50"] > 20


def test_two_ranks_train_on_the_cpu_though_most_images_are_empty(data, tmp_path):
    document = json.loads(Path(data.train_json).read_text())
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == 1]
    json_file = tmp_path / "train.json"
    json_file.write_text(json.dumps(document))
    words = [
        *("--num-gpus", 2, *SMALL, *data_keys(data), "OUTPUT_DIR", tmp_path / "run"),
        *("DATASETS.TRAIN_JSON", json_file, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
        *("SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 4),
    ]
    command = [sys.executable, "train_net.py", "--config-file", CONFIG, *map(str, words)]
    said = subprocess.check_output(command, cwd=ROOT, stderr=subprocess.STDOUT, text=True)
    assert "Starting training from iteration 0" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["world_size"], summary["iterations"]) == (2, 4)


def test_detectron2s_retinanet_trains_on_the_same_json_keys(data, tmp_path):
    succeed(
        *(*COMMON, *NARROW, *data_keys(data), "OUTPUT_DIR", tmp_path),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RETINANET.NUM_CONVS", 1),
        *("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
        config=model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
    )
    weights = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    num_anchors = 9
    assert len(weights["head.cls_score.bias"]) == 3 * num_anchors
    assert len(evaluations(tmp_path)) == 1


# What ends it early


class Running(NamedTuple):
    process: subprocess.Popen
    output: Path

    def end(self) -> str:
        """Wait until it has ended with an error; return what it said."""
        assert self.process.wait(timeout=CAP) == 1
        return self.output.read_text()


@pytest.fixture
def running(data, tmp_path) -> Iterator[Running]:
    """A training of two ranks with loader workers, that has begun."""
    words = [
        *("--num-gpus", 2, "--dist-url", "auto", *SMALL, *data_keys(data), "OUTPUT_DIR", tmp_path),
        *("DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 100000, "SOLVER.IMS_PER_BATCH", 2),
    ]
    command = [sys.executable, "train_net.py", "--config-file", CONFIG, *map(str, words)]
    with (tmp_path / "output").open("w") as output:
        own = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, **own)
    wait_until((tmp_path / "metrics.json").exists, process)
    wait_until(lambda: read_lines(tmp_path / "metrics.json"), process)
    yield Running(process, tmp_path / "output")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("to_all", [True, False], ids=["ctrl-c", "sigterm of the parent"])
def test_a_signal_saves_and_says_how_to_go_on(running, tmp_path, to_all):
    if to_all:
        os.killpg(running.process.pid, signal.SIGINT)
    else:
        running.process.terminate()
    said = running.end()
    name = (tmp_path / "last_checkpoint").read_text()
    assert f"Saving checkpoint to {tmp_path / name}" in said and "Traceback" not in said
    assert "To go on, add --resume" in said
    wait_until(lambda: not is_alive(running.process.pid))


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_rank_that_was_killed_is_named(running):
    pid = running.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranks = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(ranks[1]), signal.SIGKILL)
    assert "error: rank 1 was ended by SIGKILL, perhaps because memory ran" in running.end()


# What a user can do wrong


def break_data(data: SyntheticDataset, folder: Path) -> Path:
    document = json.loads(Path(data.train_json).read_text())
    document["images"][0]["file_name"] = "gone.png"
    document["annotations"][-1]["category_id"] = 99
    document["annotations"][-2]["bbox"] = [1, 1, 0, 5]
    path = folder / "broken.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        (["BASE_LR", 0.1], ["BASE_LR (did you mean SOLVER.BASE_LR?)"]),
        (["MODEL.YOLOF.ENCODER.NAME", "Dilated"], ["'Dilated'", "Known: ASPPEncoder"]),
        (["DATASETS.TRAIN_JSON", "no/such.json"], ["DATASETS.TRAIN_JSON", "no/such.json"]),
        (["MODEL.WEIGHTS", "no/such.pkl"], ["MODEL.WEIGHTS", "no/such.pkl"]),
        (
            ["DATASETS.TRAIN_JSON", "BROKEN"],
            ["broken.json", "gone.png", "99", "no size", "2 errors, 1 warning"],
        ),
    ],
    ids=["misspelt key", "unknown part", "missing json", "missing weights", "broken data"],
)
def test_a_mistake_ends_in_one_message_without_a_stack_trace(data, tmp_path, mistake, parts):
    broken = str(break_data(data, tmp_path))
    mistake = [broken if word == "BROKEN" else word for word in mistake]
    done = train_net(*SMALL, *data_keys(data), "OUTPUT_DIR", tmp_path, *mistake)
    assert done.returncode == 1
    assert all(part in done.stdout for part in parts), done.stdout
    assert done.stdout.count("error: ") == 1 and "Traceback" not in done.stdout


def test_train_net_is_short():
    assert len((ROOT / "train_net.py").read_text().splitlines()) < 100
