from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from torch import nn

from tests.modeling.images import make_image, train_step
from tests.small import data_keys, write_data
from tests.waiting import CAP
from yolof_d2.data import resolve_datasets
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import YOLOF

BATCH = [make_image(96, 128, [(10, 10, 60, 50), (70, 5, 120, 90)]), make_image(80, 100, seed=1)]


def make_model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def make_detector(cfg: CfgNode) -> nn.Module:
    """In eval mode, with the batch norm statistics of a batch, so that scores differ."""
    cfg.MODEL.YOLOF.SCORE_THRESH_TEST = 0.0
    model = make_model(cfg)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the average of all batches, here one
    with torch.no_grad():
        model(BATCH)
    return model.eval()


def test_training_gives_two_scalar_losses_and_gradients_for_every_trainable_parameter(cfg):
    model = make_model(cfg)
    losses = train_step(model, BATCH)
    assert losses.keys() == {"loss_cls", "loss_box_reg"}
    assert all(loss.shape == () and loss > 0 for loss in losses.values())
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.stem.", "backbone.res2."))  # MODEL.BACKBONE.FREEZE_AT
        assert parameter.requires_grad == (not frozen), name
        if parameter.requires_grad and name.endswith("weight"):
            assert parameter.grad.any(), name


def test_training_without_ground_truth_is_refused_in_words(cfg):
    image = make_image(64, 64)
    del image["instances"]
    with pytest.raises(ValueError, match=r"training needs ground truth.*model\.eval"):
        make_model(cfg)([make_image(64, 64), image])


def test_a_backbone_of_two_features_is_refused_and_they_are_named(cfg):
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    with pytest.raises(ConfigError, match=r"\['res4', 'res5'\].*OUT_FEATURES"):
        build_model(cfg)


@torch.no_grad()
def test_images_are_normalised_then_padded_with_zeros(cfg):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]
    batch = [make_image(4, 6), make_image(5, 3)]
    images = make_model(cfg).preprocess_image(batch)
    assert images.tensor.shape == (2, 3, 5, 6)
    expected = (batch[1]["image"][2].float() - 3) / 4
    assert torch.equal(images.tensor[1, 2, :, :3], expected)
    assert not images.tensor[1, :, :, 3:].any() and not images.tensor[0, :, 4:].any()


def test_default_predictor_takes_a_numpy_image(cfg):
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    cfg.MODEL.YOLOF.SCORE_THRESH_TEST = 0.0
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    assert found.image_size == (90, 120)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert len(found) == 7 and (found.scores.diff() <= 0).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_trace_of_one_image_is_right_for_an_image_of_another_size(cfg):
    model = make_detector(cfg)
    image, other = ({"image": make_image(*size)["image"]} for size in ((64, 96), (128, 80)))
    adapter = TracingAdapter(model, [image])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for inputs in (image, other):
        found = adapter.outputs_schema(traced(inputs["image"]))[0]["instances"]
        expected = model([inputs])[0]["instances"]
        assert len(expected) > 0
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.pred_classes, expected.pred_classes)


def test_detectron2s_own_trainer_trains_it(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("detectron2.engine.defaults.setup_logger", lambda: None)  # global state
    cfg.merge_from_list(data_keys(write_data(tmp_path)))
    resolve_datasets(cfg)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, ()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    trainer = DefaultTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.iter == 2
    after = trainer.model.state_dict()
    assert not torch.equal(after["decoder.cls_score.weight"], before["decoder.cls_score.weight"])
    assert (tmp_path / "out" / "model_final.pth").is_file()


# Run in a fresh interpreter: what this process has imported must not count.
RETINANET = """
import json, sys
if sys.argv[1] == "after":
    import yolof_d2
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

assert ("yolof_d2" in sys.modules) == (sys.argv[1] == "after")
torch.set_num_threads(1)
cfg = get_cfg()
dump = cfg.dump()
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
cfg.MODEL.FPN.update(IN_FEATURES=["res3", "res4", "res5"], OUT_CHANNELS=16)
cfg.MODEL.RESNETS.update(OUT_FEATURES=["res3", "res4", "res5"], NORM="BN")
cfg.MODEL.RESNETS.update(STEM_OUT_CHANNELS=4, RES2_OUT_CHANNELS=8, WIDTH_PER_GROUP=4)
cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.26, x * 1.59] for x in (32, 64, 128, 256, 512)]
torch.manual_seed(0)
model = build_model(cfg)
image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
instances = Instances((64, 96))
instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 60.0]]))
instances.gt_classes = torch.tensor([3])
with EventStorage():
    losses = model([{"image": image, "instances": instances}])
sum(losses.values()).backward()
gradient = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
print(json.dumps([dump, str(model), {k: float(v).hex() for k, v in losses.items()}, gradient]))
"""

# One import, then Detectron2 alone.
BUILD_MODEL = """
import yolof_d2
from detectron2.config import get_cfg
from detectron2.modeling import build_model

cfg = get_cfg()
yolof_d2.add_yolof_config(cfg)
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.META_ARCHITECTURE = "YOLOF"
cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
print(type(build_model(cfg)).__module__)
"""


def start(script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=CAP)
    assert process.returncode == 0, errors
    return output


def test_retinanet_is_the_same_before_and_after_the_import():
    processes = [start(RETINANET, when) for when in ("before", "after")]
    before, after = (json.loads(output_of(process)) for process in processes)
    assert len(before[2]) == 2 and before[3] > 0
    assert before == after


def test_importing_the_package_is_enough_for_build_model():
    assert output_of(start(BUILD_MODEL)).strip() == "yolof_d2.modeling.meta_arch.yolof"


class Mine(YOLOF):
    pass


@pytest.mark.parametrize("detector", [YOLOF, Mine])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("SIZES", [[32], [64]], r"SIZES is \[\[32\], \[64\]\].*one feature map"),
        ("SIZES", [[]], r"SIZES is \[\[\]\]"),
        ("SIZES", [[32, -64]], "positive"),
        ("ASPECT_RATIOS", [[0.0]], "ASPECT_RATIOS.*positive"),
    ],
)
def test_anchors_that_are_not_for_one_map_are_refused(cfg, detector, key, value, said):
    cfg.MODEL.ANCHOR_GENERATOR[key] = value
    with pytest.raises(ConfigError, match=said):
        detector(cfg)


@pytest.mark.parametrize("detector", [YOLOF, Mine])
def test_boxes_between_two_anchors_must_be_in_reach(cfg, detector):
    cfg.MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP = 16
    detector(cfg)
    cfg.MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP = 15
    with pytest.raises(ConfigError, match=r"CENTER_CLAMP is 15 pixels.*stride of 32.*16 pixels"):
        detector(cfg)
