from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_backbone, build_model

from tests.modeling.backbone.arrangements import (
    ARRANGEMENTS,
    MIMO,
    MISO,
    OF_FCOS,
    SIMO,
    SISO,
    Given,
    make_features,
)
from tests.modeling.images import make_image, train_step
from yolof_d2.errors import ConfigError


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_levels_have_the_promised_shapes_and_gradients_reach_every_weight(
    make_backbone, name, norm
):
    backbone = make_backbone(name, NORM=norm)
    shapes = backbone.output_shape()
    assert list(shapes) == ARRANGEMENTS[name]
    assert backbone.size_divisibility == 32
    levels = backbone(torch.randn(2, 3, 64, 160))
    assert list(levels) == ARRANGEMENTS[name]
    for level, feature in levels.items():
        stride = 2 ** int(level[1])
        assert (shapes[level].channels, shapes[level].stride) == (32, stride)
        assert feature.shape == (2, 32, -(-64 // stride), -(-160 // stride))
    sum(feature.square().sum() for feature in levels.values()).backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


def test_siso_is_the_p5_of_fpn(make_backbone):
    fpn, siso = make_backbone(MIMO).eval(), make_backbone(SISO).eval()
    siso.load_state_dict(
        {name: value for name, value in fpn.state_dict().items() if name in siso.state_dict()}
    )
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(siso(images)["p5"], fpn(images)["p5"])


def test_fcos_takes_p6_and_p7_from_p5(make_backbone):
    backbone = make_backbone(OF_FCOS).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 128, 128))
        p6 = backbone.top_block.p6(levels["p5"])
        assert torch.equal(levels["p6"], p6)
        assert torch.equal(levels["p7"], backbone.top_block.p7(p6.clamp(min=0)))


@pytest.mark.parametrize(
    ("name", "read"), [(MIMO, 3), (SIMO, 1), (MISO, 3), (SISO, 1)], ids=["MiMo", "SiMo", *"MS"]
)
def test_single_in_sees_c5_alone_and_multiple_in_all_three(make_backbone, name, read):
    backbone = make_backbone(name).eval()
    backbone.bottom_up = Given()
    features = make_features()
    for changed in features:
        with torch.no_grad():
            before = backbone(features)
            after = backbone({**features, changed: features[changed] + 1})
        changes = any(not torch.equal(before[level], after[level]) for level in before)
        assert changes == (read == 3 or changed == "res5"), changed


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("size", [(33, 150), (32, 32), (101, 67)])
def test_a_retinanet_on_it_trains_and_detects_at_any_image_size(cfg, make_backbone, name, size):
    make_backbone(name)  # for its keys
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    levels = ARRANGEMENTS[name]
    cfg.MODEL.RETINANET.update(IN_FEATURES=levels, NUM_CONVS=1, NUM_CLASSES=3)
    sizes = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes if len(levels) > 1 else [[32, 64, 128, 256, 512]]
    torch.manual_seed(0)
    model = build_model(cfg)
    image = make_image(*size, [(2, 3, 30, 29)])
    train_step(model, [image] * 2)  # two values for the batch norms of a 1x1 map
    model.test_score_thresh = 0.0
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["instances"].image_size == size and len(found["instances"]) > 0


@pytest.mark.parametrize(
    ("name", "given", "dilation"),
    [
        (SIMO, ["res4"], 1),
        (SISO, ["res4"], 1),
        (MISO, ["res3", "res5"], 1),
        (OF_FCOS, ["res4", "res5"], 1),
        (SIMO, ["res5"], 2),
        (SISO, ["res5"], 2),
        (MISO, ["res3", "res4", "res5"], 2),
    ],
)
def test_a_resnet_without_the_levels_is_refused_in_words(cfg, name, given, dilation):
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = given
    cfg.MODEL.RESNETS.RES5_DILATION = dilation
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ConfigError, match=rf"{name} reads .*'res5': 32.*RESNETS\.OUT_FEATURES"):
        build_backbone(cfg)


def test_an_fcos_without_p5_is_refused_in_words(make_backbone):
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.IN_FEATURES is \['res3', 'res4'\].*res5"):
        make_backbone(OF_FCOS, IN_FEATURES=["res3", "res4"])


@pytest.mark.parametrize("name", [SIMO, MISO])
def test_an_unknown_norm_is_refused(make_backbone, name):
    with pytest.raises(ConfigError, match="unknown NORM 'bn'"):
        make_backbone(name, NORM="bn")
