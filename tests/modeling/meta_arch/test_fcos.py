from __future__ import annotations

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.utils.events import EventStorage

from tests.modeling.images import make_image
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.meta_arch.fcos import FCOS, Float32Box2BoxTransformLinear


@pytest.fixture
def fcos_cfg(pyramid_cfg: CfgNode) -> CfgNode:
    pyramid_cfg.MODEL.META_ARCHITECTURE = "FCOS"
    pyramid_cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    return pyramid_cfg


def make_model(cfg: CfgNode) -> FCOS:
    torch.manual_seed(0)
    return build_model(cfg)


def test_it_is_detectron2s_own_model_weight_for_weight_and_loss_for_loss(cfg):
    """Detectron2's published config, unchanged, against the keys' default values."""
    resnets = cfg.MODEL.RESNETS
    resnets.NORM, resnets.OUT_FEATURES = "FrozenBN", ["res3", "res4", "res5"]
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS, resnets.WIDTH_PER_GROUP = 64, 256, 64
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    ours = make_model(cfg)
    torch.manual_seed(0)
    theirs = instantiate(model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model)

    weights, expected = ours.state_dict(), theirs.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    trainable = [
        {n: p.requires_grad for n, p in model.named_parameters()} for model in (ours, theirs)
    ]
    assert trainable[0] == trainable[1]
    assert torch.equal(ours.pixel_mean, theirs.pixel_mean)
    assert torch.equal(ours.pixel_std, theirs.pixel_std)

    batch = [make_image(70, 101, [(9, 9, 50, 60)]), make_image(80, 80)]
    for _ in range(2):  # the second has the first one's loss normaliser
        with EventStorage():
            losses, expected = ours.train()(batch), theirs.train()(batch)
        assert losses.keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
        assert losses == expected
        assert all(loss > 0 for loss in losses.values())

    # A score that is near the middle of those of fresh weights, so that the threshold matters.
    with torch.no_grad():
        for model in (ours, theirs):
            model.eval().head.cls_score.bias += 3.0
        found, expected = (model(batch) for model in (ours, theirs))
    assert sum(len(result["instances"]) for result in expected) > 20
    for result, expected_result in zip(found, expected, strict=True):
        result, expected_result = result["instances"], expected_result["instances"]
        assert torch.equal(result.pred_boxes.tensor, expected_result.pred_boxes.tensor)
        assert torch.equal(result.scores, expected_result.scores)
        assert torch.equal(result.pred_classes, expected_result.pred_classes)


def test_each_key_reaches_the_model(fcos_cfg):
    values = {
        "NUM_CLASSES": 5,
        "IN_FEATURES": ["p4", "p5"],
        "NUM_CONVS": 2,
        "NORM": "",
        "PRIOR_PROB": 0.2,
        "CENTER_SAMPLING_RADIUS": 2.0,
        "FOCAL_LOSS_ALPHA": 0.3,
        "FOCAL_LOSS_GAMMA": 1.5,
        "SCORE_THRESH_TEST": 0.11,
        "TOPK_CANDIDATES_TEST": 17,
        "NMS_THRESH_TEST": 0.4,
    }
    assert values.keys() == fcos_cfg.MODEL.FCOS.keys()
    fcos_cfg.MODEL.FCOS.update(values)
    fcos_cfg.TEST.DETECTIONS_PER_IMAGE = 9
    fcos_cfg.INPUT.FORMAT = "RGB"
    model = make_model(fcos_cfg)
    assert (model.num_classes, model.head.cls_score.out_channels) == (5, 5)
    assert model.head_in_features == ["p4", "p5"] and model.anchor_generator.strides == [16, 32]
    assert [type(layer).__name__ for layer in model.head.cls_subnet] == ["Conv2d", "ReLU"] * 2
    torch.testing.assert_close(model.head.cls_score.bias.sigmoid(), torch.full((5,), 0.2))
    assert model.center_sampling_radius == 2.0
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.3, 1.5)
    assert (model.test_score_thresh, model.test_nms_thresh) == (0.11, 0.4)
    assert (model.test_topk_candidates, model.max_detections_per_image) == (17, 9)
    assert model.input_format == "RGB"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_of_half_precision_deltas_keep_the_position_of_their_anchor(dtype, fcos_cfg):
    anchors = torch.tensor([[1024.0, 768.0, 1032.0, 776.0]])
    deltas = torch.tensor([[1.0, 0.5, 1.0625, -1.0]], dtype=dtype)
    # The centre is (1028, 772); distances are in units of the anchor's 8 pixels, -1 counts as 0.
    expected = torch.tensor([[1020.0, 768.0, 1036.5, 772.0]])
    transform = make_model(fcos_cfg).box2box_transform
    assert isinstance(transform, Float32Box2BoxTransformLinear)
    boxes = transform.apply_deltas(deltas, anchors)
    assert boxes.dtype == torch.float32 and torch.equal(boxes, expected)
    assert not torch.equal(Box2BoxTransformLinear().apply_deltas(deltas, anchors), expected)


@pytest.mark.parametrize("names", [["p5", "p9"], ["res5"], []])
def test_levels_that_the_backbone_does_not_give_are_refused(fcos_cfg, names):
    fcos_cfg.MODEL.FCOS.IN_FEATURES = names
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.IN_FEATURES is .*\['p3', 'p4', .*'p7'\]"):
        make_model(fcos_cfg)
