from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.waiting import CAP, wait_until
from yolof_d2.engine.checkpoint import StrictDetectionCheckpointer
from yolof_d2.errors import ConfigError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)


def load(tmp_path, weights: dict[str, torch.Tensor]) -> Net:
    torch.save({"model": weights}, tmp_path / "weights.pth")
    model = Net()
    StrictDetectionCheckpointer(model, str(tmp_path)).load(str(tmp_path / "weights.pth"))
    return model


@pytest.mark.parametrize("prefix", ["", "module.", "head."])
def test_weights_under_other_names_are_refused_and_both_namings_shown(tmp_path, prefix):
    weights = {f"{prefix}{name}": value for name, value in Net().backbone.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"none of its 7.*{prefix}0\.weight.*backbone\.0\.weig"):
        load(tmp_path, weights)


def test_weights_of_other_shapes_alone_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="none of its"):
        load(tmp_path, {"head.weight": torch.zeros(5, 4, 1, 1), "head.bias": torch.zeros(5)})


def test_a_backbone_alone_is_loaded_and_the_rest_stays_as_it_was(tmp_path):
    weights = {f"backbone.{name}": value for name, value in Net().backbone.state_dict().items()}
    loaded = load(tmp_path, weights)
    assert torch.equal(loaded.backbone[0].weight, weights["backbone.0.weight"])


def test_a_pickle_of_imagenet_weights_is_loaded_by_detectron2s_heuristics(tmp_path):
    model = Net()
    state = model.backbone.state_dict()
    arrays = {name: value.numpy() + 1 for name, value in state.items() if value.dim()}
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    StrictDetectionCheckpointer(model, str(tmp_path)).load(str(tmp_path / "weights.pkl"))
    assert torch.equal(model.backbone[0].weight, torch.from_numpy(arrays["0.weight"]))


def test_what_it_saves_it_loads(tmp_path):
    model = Net()
    checkpointer = StrictDetectionCheckpointer(model, str(tmp_path))
    checkpointer.add_checkpointable("head_alone", model.head)
    checkpointer.save("x", iteration=3)
    again = Net()
    head = nn.Conv2d(4, 2, 1)
    loader = StrictDetectionCheckpointer(again, str(tmp_path), head_alone=head)
    assert loader.load(str(tmp_path / "x.pth"))["iteration"] == 3
    assert torch.equal(again.head.weight, model.head.weight)
    assert torch.equal(head.weight, model.head.weight)


def test_a_checkpoint_is_named_the_last_one_when_it_is_there(tmp_path):
    checkpointer = StrictDetectionCheckpointer(Net(), str(tmp_path))
    checkpointer.save("model_0000001")
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpointer.save("model_0000003", iteration=lambda: "cannot be saved")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


class Slow:
    """Part of a checkpoint whose saving never comes to its end."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        self.path.write_text("saving")
        time.sleep(CAP)
        return (str, ())


def _save_for_ever(folder):
    checkpointer = StrictDetectionCheckpointer(Net(), str(folder))
    checkpointer.save("model_final", iteration=Slow(folder / "saving"))


def test_a_process_that_is_killed_while_it_saves_leaves_the_last_checkpoint(tmp_path):
    StrictDetectionCheckpointer(Net(), str(tmp_path)).save("model_final", iteration=7)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_save_for_ever, args=(tmp_path,))
    process.start()
    wait_until((tmp_path / "saving").exists)
    process.kill()
    process.join()
    checkpointer = StrictDetectionCheckpointer(Net(), str(tmp_path))
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 7
    checkpointer.save("model_final")  # and removes what the killed process left
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_only_the_rank_that_saves_writes(tmp_path):
    StrictDetectionCheckpointer(Net(), str(tmp_path), save_to_disk=False).save("model")
    StrictDetectionCheckpointer(Net(), "").save("model")
    assert list(tmp_path.iterdir()) == []


# Going on from one that is sound


class Training:
    """What else a checkpoint of a training holds."""

    def __init__(self) -> None:
        self.state = {"iteration": 0, "momentum": {0: torch.ones(2), 1: torch.ones(3)}}

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def checkpointer_in(folder: Path) -> tuple[StrictDetectionCheckpointer, Training]:
    training = Training()
    return StrictDetectionCheckpointer(Net(), str(folder), trainer=training), training


@pytest.fixture
def folder(tmp_path) -> Path:
    """Checkpoints after iterations 3 and 7."""
    checkpointer, training = checkpointer_in(tmp_path)
    for iteration in (3, 7):
        training.state["iteration"] = iteration
        checkpointer.save(f"model_{iteration:07d}")
    return tmp_path


def resume(folder: Path) -> int:
    checkpointer, training = checkpointer_in(folder)
    checkpointer.resume_or_load("", resume=True)
    return training.state["iteration"]


def change(path: Path, how: Callable[[dict], None]) -> None:
    content = torch.load(path)
    how(content)
    torch.save(content, path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:  # in the bytes of a tensor
        start = max(file.infolist(), key=lambda entry: entry.file_size).header_offset + 200
    content[start] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut off, or no checkp"),
    "empty": (lambda path: path.write_bytes(b""), r"cut off, or no checkpoint \(0 bytes\)"),
    "gone": (lambda path: path.unlink(), "it is not there"),
    "a bit flipped": (flip_a_bit, "the checksum of .* is wrong"),
    "another archive": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
        "an archive of another kind",
    ),
    "objects": (lambda path: torch.save({"model": Net()}, path), "holds more than tensors and"),
    "foreign": (lambda path: torch.save([1], path), "no state of a training"),
    "weights alone": (lambda path: torch.save({"model": {}}, path), "no state of a training"),
    "a weight less": (
        lambda path: change(path, lambda saved: saved["model"].pop("head.bias")),
        "it is not complete",
    ),
    "a momentum less": (
        lambda path: change(path, lambda saved: saved["trainer"]["momentum"].pop(1)),
        "it is not complete",
    ),
    "not finite": (
        lambda path: change(path, lambda saved: saved["model"]["head.bias"].fill_(torch.nan)),
        "1 weights, such as head.bias, are infinite or NaN",
    ),
    "of another model": (
        lambda path: change(
            path, lambda saved: saved["model"].update({"head.bias": torch.ones(5)})
        ),
        "1 of the model's 9 weights, such as head.bias, are not in it, or have another shape",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_from_one_that_is_not_sound_the_one_before_is_used(folder, caplog, name):
    damage, said = DAMAGES[name]
    damage(folder / "model_0000007.pth")
    assert resume(folder) == 3
    assert re.search(f"model_0000007.pth: .*{said}", caplog.text)
    assert "Going on from model_0000003.pth" in caplog.text
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"


@pytest.mark.parametrize("error", [OSError("stale file handle"), MemoryError()])
def test_a_file_that_cannot_be_read_now_is_not_given_up(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        resume(folder)
    assert (folder / "last_checkpoint").read_text() == "model_0000007.pth"


def test_where_none_is_sound_nothing_is_trained(folder):
    for path in folder.glob("*.pth"):
        os.truncate(path, 9)
    with pytest.raises(ConfigError, match=r"model_0000007.pth: .*9 bytes.*model_0000003.pth: "):
        resume(folder)


@pytest.mark.parametrize("note", [None, "", "  "])
def test_a_note_that_is_missing_or_empty_is_made_again(folder, note):
    (folder / "last_checkpoint").unlink()
    if note is not None:
        (folder / "last_checkpoint").write_text(note)
    assert resume(folder) == 7
    assert (folder / "last_checkpoint").read_text() == "model_0000007.pth"


def test_weights_that_are_not_finite_are_not_saved(folder, caplog):
    checkpointer, _ = checkpointer_in(folder)
    with torch.no_grad():
        checkpointer.model.head.weight[0] = torch.inf
    checkpointer.save("model_0000009")
    assert "model_0000009.pth is not saved: 1 of 9 weights are infinite or NaN" in caplog.text
    assert resume(folder) == 7


def test_one_that_is_not_for_a_resume_is_not_named_the_last(folder):
    checkpointer_in(folder)[0].save("model_best", resumable=False)
    assert resume(folder) == 7
