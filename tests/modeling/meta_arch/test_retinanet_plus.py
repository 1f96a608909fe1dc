from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from tests.modeling.images import make_image
from yolof_d2.modeling.meta_arch import ImplicitObjectnessRetinaNetHead, RetinaNetPlus

BATCH = [make_image(96, 128, [(10, 10, 60, 50), (70, 5, 120, 90)], seed) for seed in (0, 1)]


@pytest.fixture
def plus_cfg(pyramid_cfg: CfgNode) -> CfgNode:
    pyramid_cfg.MODEL.META_ARCHITECTURE = "RetinaNetPlus"
    pyramid_cfg.MODEL.RETINANET.NORM = "GN"
    pyramid_cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = "giou"
    return pyramid_cfg


def make_model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def losses_of(model: nn.Module, batch: list[dict]) -> dict:
    with EventStorage():
        return model.train()(batch)


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_each_class_score_of_the_head_is_class_score_times_objectness_of_its_anchor(norm):
    num_anchors, num_classes = 2, 3
    torch.manual_seed(0)
    head = ImplicitObjectnessRetinaNetHead(
        input_shape=[ShapeSpec(channels=32)] * 2,
        num_classes=num_classes,
        num_anchors=num_anchors,
        conv_dims=[32],
        norm=norm,
    ).eval()
    for layer in (head.cls_score, head.object_pred, head.bbox_pred):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    features = [torch.randn(2, 32, 3, 5), torch.randn(2, 32, 2, 2)]
    with torch.no_grad():
        logits, deltas = head(features)
        expected_class, expected_deltas = super(type(head), head).forward(features)
        objects = [head.object_pred(head.bbox_subnet(feature)) for feature in features]
    for level in range(2):
        assert torch.equal(deltas[level], expected_deltas[level])
        assert logits[level].shape == expected_class[level].shape
        for channel in range(num_anchors * num_classes):
            anchor = channel // num_classes
            score = expected_class[level][:, channel].double().sigmoid()
            score = score * objects[level][:, anchor].double().sigmoid()
            torch.testing.assert_close(
                logits[level][:, channel].double().sigmoid(), score, rtol=1e-4, atol=1e-7
            )


def test_with_certain_objects_it_is_retinanet_and_without_any_it_finds_none(plus_cfg):
    plus = make_model(plus_cfg)
    plus_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    plain = make_model(plus_cfg)
    missing, extra = plain.load_state_dict(plus.state_dict(), strict=False)
    assert not missing and set(extra) == {"head.object_pred.weight", "head.object_pred.bias"}
    nn.init.zeros_(plus.head.object_pred.weight)
    nn.init.constant_(plus.head.object_pred.bias, 60.0)
    ours, expected = losses_of(plus, BATCH), losses_of(plain, BATCH)
    assert ours.keys() == expected.keys() == {"loss_cls", "loss_box_reg"}
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name])

    plus.test_score_thresh = plain.test_score_thresh = 0.0
    with torch.no_grad():
        ours, expected = (m.eval()(BATCH)[0]["instances"] for m in (plus, plain))
        assert len(expected) > 0
        torch.testing.assert_close(ours.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(ours.scores, expected.scores)
        assert torch.equal(ours.pred_classes, expected.pred_classes)
        nn.init.constant_(plus.head.object_pred.bias, -60.0)
        assert plus(BATCH)[0]["instances"].scores.max() < 1e-20


@pytest.mark.parametrize("anchor", range(4))
def test_an_objectness_reaches_the_classes_of_its_own_anchor_in_every_cell(plus_cfg, anchor):
    model = make_model(plus_cfg).eval()
    nn.init.zeros_(model.head.object_pred.weight)
    nn.init.constant_(model.head.object_pred.bias, -60.0)
    with torch.no_grad():
        model.head.object_pred.bias[anchor] = 0.0
        features = model.backbone(model.preprocess_image(BATCH).tensor)
        predictions = model.head([features[name] for name in model.head_in_features])
        logits = torch.cat(model._transpose_dense_predictions(predictions, [3, 4])[0], dim=1)
    visible = logits[0] > -30
    assert (visible.nonzero()[:, 0] % 4 == anchor).all()
    assert visible.sum() == visible.numel() / 4


def test_scores_start_at_half_the_prior_as_in_yolof(plus_cfg):
    model = make_model(plus_cfg).eval()
    features = [torch.randn(1, 64, 4, 4)] * 5
    logits = model.head(features)[0][0]
    assert logits.mean().sigmoid().item() == pytest.approx(0.005, rel=0.1)
    assert not model.head.object_pred.bias.any()


def test_the_head_reads_retinanets_keys(plus_cfg):
    plus_cfg.MODEL.RETINANET.NUM_CONVS = 2
    plus_cfg.MODEL.RETINANET.NUM_CLASSES = 7
    plus_cfg.MODEL.RETINANET.PRIOR_PROB = 0.2
    model = make_model(plus_cfg)
    assert isinstance(model, RetinaNetPlus) and model.box_reg_loss_type == "giou"
    assert isinstance(model.head, ImplicitObjectnessRetinaNetHead)
    assert len([m for m in model.head.cls_subnet if isinstance(m, nn.GroupNorm)]) == 2
    assert model.head.cls_score.out_channels == 4 * 7
    torch.testing.assert_close(model.head.cls_score.bias.sigmoid(), torch.full((28,), 0.2))
