from __future__ import annotations

import multiprocessing
import pickle
import time

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
