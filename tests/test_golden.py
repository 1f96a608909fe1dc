"""Values computed by the public Detectron2 implementation of YOLOF, with the same weights.

In eval mode the file's random weights meet batch norms of unit statistics, so that activations
reach 1e7 and float32 rounding is relative to that magnitude. The public formula of objectness
clamps exp() at 1e8, which is wrong above a logit of 18.4; the file's logits exercise that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from tests.small import default_cfg
from yolof_d2.modeling.decoder import implicit_objectness

PATH = Path(__file__).parents[1].parent / "shared" / "golden" / "reference_c5.pt"
pytestmark = pytest.mark.skipif(not PATH.is_file(), reason=f"no golden values at {PATH}")

fold_objectness = implicit_objectness.fold_objectness


def public_formula(class_logits: Tensor, object_logits: Tensor) -> Tensor:
    exponentials = class_logits.exp().clamp(max=1e8) + object_logits.exp().clamp(max=1e8)
    return class_logits + object_logits - torch.log(1 + exponentials)


def anchors_last(prediction: Tensor, dim: int) -> Tensor:
    """The file keeps (N, A * dim, H, W); ours is (N, H * W * A, dim)."""
    num_images, channels, height, width = prediction.shape
    prediction = prediction.view(num_images, channels // dim, dim, height, width)
    return prediction.permute(0, 3, 4, 1, 2).reshape(num_images, -1, dim)


def assert_close(ours: Tensor, theirs: Tensor, terms: Tensor | None = None) -> None:
    """Within 1e-5 of the largest magnitude, and within 1e-3 of their own where that is not tiny.

    Args:
        terms: magnitude of what each element is a sum of, where that is larger than the element.
    """
    terms = theirs.abs() if terms is None else terms
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs()
    assert error.max() < 1e-5 * terms.max()
    assert (error < 1e-3 * terms + 1e-6 * terms.max()).all()


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return torch.load(PATH, weights_only=False)


@pytest.fixture
def model(golden) -> nn.Module:
    values = golden["config"]
    cfg = default_cfg()
    cfg.MODEL.META_ARCHITECTURE = "YOLOF"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    for key, value in values["resnet"].items():
        cfg.MODEL.RESNETS[key] = value
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = values["anchor_sizes"]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.YOLOF.NUM_CLASSES = values["classes"]
    cfg.MODEL.YOLOF.SCORE_THRESH_TEST = values["score_thresh"]
    cfg.MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS = values["encoder_channels"]
    cfg.MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS = values["mid_channels"]
    cfg.MODEL.YOLOF.ENCODER.DILATED.DILATIONS = values["dilations"]
    cfg.MODEL.YOLOF.MATCHER.UNIFORM.TOPK = values["topk"]
    cfg.MODEL.YOLOF.MATCHER.UNIFORM.POS_IGNORE_IOU = values["pos_ignore"]
    cfg.MODEL.YOLOF.MATCHER.UNIFORM.NEG_IGNORE_IOU = values["neg_ignore"]
    model = build_model(cfg)
    model.load_state_dict(golden["state_dict"], strict=True)
    return model


@pytest.fixture
def inputs(golden) -> list[dict[str, Any]]:
    batch = []
    for image, boxes, classes in zip(
        golden["images"], golden["gt_boxes"], golden["gt_classes"], strict=True
    ):
        instances = Instances(image.shape[1:], gt_boxes=Boxes(boxes), gt_classes=classes)
        batch.append({"image": image, "instances": instances})
    return batch


@torch.no_grad()
def decode(model: nn.Module, inputs: list, monkeypatch, formula) -> dict[str, Tensor]:
    """Every stage of the model in eval mode, with the objectness folded in by ``formula``."""
    stages = {}

    def fold(class_logits, object_logits):
        stages.update(cls=class_logits, obj=object_logits)
        return formula(class_logits, object_logits)

    monkeypatch.setattr(implicit_objectness, "fold_objectness", fold)
    model.eval()
    stages["res5"] = model.backbone(model.preprocess_image(inputs).tensor)["res5"]
    stages["encoder"] = model.encoder(stages["res5"])
    stages["logits"], stages["deltas"] = model.decoder(stages["encoder"])
    return stages


def test_features_and_deltas_are_the_public_ones(model, inputs, golden, monkeypatch):
    ours = decode(model, inputs, monkeypatch, fold_objectness)
    theirs = golden["eval"]
    assert_close(ours["res5"], theirs["res5"])
    assert_close(ours["encoder"], theirs["encoder"])
    assert_close(ours["deltas"], anchors_last(theirs["deltas"], 4))


def test_logits_are_the_public_ones_where_the_public_formula_holds(
    model, inputs, golden, monkeypatch
):
    ours = decode(model, inputs, monkeypatch, fold_objectness)
    theirs = anchors_last(golden["eval"]["logits"], golden["config"]["classes"])
    holds = (ours["cls"] < 18) & (ours["obj"] < 18)
    assert holds.float().mean() > 0.3
    assert_close(ours["logits"][holds], theirs[holds])
    with pytest.raises(AssertionError):  # and it does matter that it does not hold elsewhere
        assert_close(ours["logits"][~holds], theirs[~holds])


def test_with_the_public_formula_logits_and_detections_are_the_public_ones(
    model, inputs, golden, monkeypatch
):
    ours = decode(model, inputs, monkeypatch, public_formula)
    theirs = anchors_last(golden["eval"]["logits"], golden["config"]["classes"])
    assert_close(ours["logits"], theirs, ours["cls"].abs() + ours["obj"].abs())

    with torch.no_grad():
        results = model(inputs)
    assert [len(result["instances"]) for result in results] == [13, 21]
    for result, expected in zip(results, golden["eval"]["detections"], strict=True):
        found = result["instances"]
        assert found.pred_classes.tolist() == expected["classes"].tolist()
        torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], rtol=0, atol=1e-3)


def test_on_these_logits_ours_is_exact_and_the_public_formula_is_not(
    model, inputs, golden, monkeypatch
):
    """Where we differ on purpose: see :func:`fold_objectness`."""
    stages = decode(model, inputs, monkeypatch, fold_objectness)
    cls, obj = stages["cls"].double(), stages["obj"].double().expand_as(stages["cls"])
    # logit(p) = -log(1 / p - 1) with p = sigmoid(cls) * sigmoid(obj)
    truth = -torch.logsumexp(torch.stack((-cls, -obj, -cls - obj)), dim=0)
    rounding = 2 * torch.finfo(torch.float32).eps * (1 + cls.abs() + obj.abs())
    assert ((stages["logits"] - truth).abs() <= rounding).all()

    theirs = anchors_last(golden["eval"]["logits"], golden["config"]["classes"]).double()
    wrong = (theirs - truth).abs() > 1 + 0.01 * truth.abs()
    assert wrong.float().mean() > 0.3
    assert (cls.maximum(obj)[wrong] > 18).all()


def test_anchors_matches_losses_and_gradients_are_the_public_ones(model, inputs, golden):
    seen = {}
    matcher = model.matcher

    def spy(anchors, pred_logits, pred_boxes, ground_truth):
        match = matcher(anchors, pred_logits, pred_boxes, ground_truth)
        seen.update(anchors=anchors, match=match, valid=ground_truth.valid)
        return match

    model.matcher = spy
    losses = model.train()(inputs)
    expected = golden["train"]

    assert torch.equal(seen["anchors"], expected["anchors"])
    for i, (anchor_idx, gt_idx) in enumerate(expected["matches"]):
        is_real = seen["valid"][i][seen["match"].pair_gt_idx[i]]
        assert torch.equal(seen["match"].pair_anchor_idx[i][is_real], anchor_idx)
        assert torch.equal(seen["match"].pair_gt_idx[i][is_real], gt_idx)

    assert losses.keys() == expected["losses"].keys()
    for name, value in expected["losses"].items():
        torch.testing.assert_close(losses[name].detach(), value, rtol=0, atol=1e-4)

    sum(losses.values()).backward()
    norms = {n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == expected["grad_norms"].keys()
    cancelled = biases_before_batch_norm(model)
    assert len(cancelled) == 20
    for name, value in expected["grad_norms"].items():
        # Batch norm subtracts the mean, and so a bias before it: the true gradient is zero, and
        # what both implementations report is rounding.
        rtol, atol = (0, 1e-6) if name in cancelled else (1e-3, 0)
        torch.testing.assert_close(
            norms[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def biases_before_batch_norm(model: nn.Module) -> set[str]:
    heads = {"cls_score", "bbox_pred", "object_pred"}  # the convolutions without a norm
    return {
        f"{name}.bias"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.bias is not None
        if name.rsplit(".", 1)[-1] not in heads
    }
