from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.convert.checkpoints import convert, refused, save


class Telltale:
    """An object that would write a file on being read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_are_read_only_on_demand(resnet18, tmp_path, caplog):
    content = {"state_dict": resnet18.state_dict(), "meta": Telltale(tmp_path / "code_ran")}
    source = save(content, tmp_path / "theirs.pth")
    assert refused(source, tmp_path / "ours.pth")
    assert "holds Python objects" in caplog.text and "--unsafe" in caplog.text
    assert not (tmp_path / "code_ran").exists()
    convert(source, tmp_path / "ours.pth", "--unsafe")
    assert (tmp_path / "code_ran").exists() and (tmp_path / "ours.pth").exists()


ABSENT = """
class History(dict):
    pass

class Buffer(list):
    pass

class Stamp:
    def __init__(self, *numbers):
        self.numbers = numbers

    def __reduce__(self):
        return Stamp, self.numbers, 5  # a state that is no dict

    def __setstate__(self, state):
        pass
"""


@pytest.mark.parametrize("new_format", [True, False])
def test_objects_of_packages_that_are_not_here_are_passed_over(
    new_format, resnet18, tmp_path, monkeypatch
):
    module = types.ModuleType("mmengine_like")
    exec(ABSENT, module.__dict__)
    monkeypatch.setitem(sys.modules, "mmengine_like", module)
    history = module.History(loss=module.Buffer([1, 2]))
    history.stamp = module.Stamp(1, 2)
    content = {"state_dict": resnet18.state_dict(), "message_hub": history}
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=new_format)
    monkeypatch.delitem(sys.modules, "mmengine_like")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.pth", "--unsafe")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["stem.conv1.weight"], resnet18.state_dict()["conv1.weight"])


def test_safetensors_are_read(resnet18, tmp_path):
    save_file(dict(resnet18.state_dict()), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "ours.pth", "--from", "timm")
    ours = torch.load(tmp_path / "ours.pth")["model"]
    assert torch.equal(ours["res5.1.conv2.norm.bias"], resnet18.state_dict()["layer4.1.bn2.bias"])


@pytest.mark.parametrize("name", ["text.pth", "empty.pth", "cut.pth", "pkl.pth", "a.safetensors"])
def test_what_is_no_checkpoint_is_named_in_one_line(name, resnet18, tmp_path, caplog):
    path = tmp_path / name
    if name == "cut.pth":
        save(resnet18.state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "pkl.pth":
        path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    else:
        path.write_text("" if name == "empty.pth" else "<html>not found</html>")
    for flags in ([], ["--unsafe"]):
        caplog.clear()
        assert refused(path, tmp_path / "ours.pth", *flags)
        (record,) = caplog.records
        message = record.getMessage()
        assert str(path) in message and "no checkpoint that PyTorch can read" in message
        assert "weights_only" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a dict of weights"),
        ({"epoch": 1, "lr": 0.1}, "holds no weights: epoch, lr"),
        ({"a.weight": torch.zeros(1)}, r"the names (a.weight, ...) are those of no known format"),
    ],
)
def test_files_without_weights_that_we_know_are_refused(content, message, tmp_path, caplog):
    assert refused(save(content, tmp_path / "theirs.pth"), tmp_path / "ours.pth")
    assert message in caplog.text


def test_a_write_that_fails_leaves_what_was_there(resnet18, tmp_path, caplog, monkeypatch):
    source = save(resnet18.state_dict(), tmp_path / "theirs.pth")
    target = tmp_path / "new folder" / "ours.pth"
    convert(source, target)
    before = target.read_bytes()

    def fail(content, stream):
        stream.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    assert refused(source, target)
    assert "no space left" in caplog.text
    assert target.read_bytes() == before and len(list(target.parent.iterdir())) == 1
