from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from yolof_d2.errors import ConfigError

# Backbone: names of its levels.
PYRAMID = ["p3", "p4", "p5", "p6", "p7"]
ARRANGEMENTS = {
    "build_retinanet_resnet_fpn_backbone": PYRAMID,
    "build_retinanet_resnet_simo_backbone": PYRAMID,
    "build_retinanet_resnet_miso_backbone": ["p5"],
    "build_retinanet_resnet_siso_backbone": ["p5"],
    "build_fcos_resnet_fpn_backbone": PYRAMID,
}
MIMO, SIMO, MISO, SISO, OF_FCOS = ARRANGEMENTS
NEEDED = {SIMO: ["res5"], MISO: ["res3", "res4", "res5"], SISO: ["res5"]}


@pytest.fixture
def make_backbone(cfg: CfgNode):
    def make(name: str, **keys: object) -> Backbone:
        torch.manual_seed(0)
        cfg.MODEL.BACKBONE.NAME = name
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.OUT_FEATURES = NEEDED.get(name, ["res3", "res4", "res5"])
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        cfg.MODEL.FPN.update(keys)
        return build_backbone(cfg)

    return make


class Given(nn.Module):
    """A bottom-up network whose output is what it is given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def make_features(num_cells: int = 2) -> dict[str, Tensor]:
    """C3, C4 and C5 of the tiny ResNet."""
    return {
        name: torch.randn(1, channels, num_cells * scale, num_cells * scale)
        for name, channels, scale in (("res3", 16, 4), ("res4", 32, 2), ("res5", 64, 1))
    }


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
        cells = (2, 32, -(-64 // stride), -(-160 // stride))
        assert feature.shape == cells
    sum(feature.square().sum() for feature in levels.values()).backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("norm", ["", "BN"])
def test_simo_is_fpn_with_silent_lateral_connections(make_backbone, norm):
    fpn, simo = make_backbone(MIMO, NORM=norm).eval(), make_backbone(SIMO, NORM=norm).eval()
    simo.load_state_dict(
        {name: value for name, value in fpn.state_dict().items() if name in simo.state_dict()}
    )
    for lateral in (fpn.fpn_lateral3, fpn.fpn_lateral4):
        nn.init.zeros_(lateral.weight)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        levels, expected = simo(images), fpn(images)
    for level in PYRAMID:
        torch.testing.assert_close(levels[level], expected[level])


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


@pytest.mark.parametrize(
    ("changed", "cell", "rows"),
    [
        # By hand, per axis: which of the 4 cells of p5 an impulse reaches, and how strongly. The
        # 3x3 convolutions of stride 2 take cells 2i - 1 to 2i + 1, the last one i - 1 to i + 1.
        ("res3", 8, [0, 1, 1, 1]),  # 8 -> 4 -> 2
        ("res3", 7, [1, 3, 3, 2]),  # 7 -> 3 and 4; 3 -> 1 and 2, 4 -> 2
        ("res4", 5, [0, 1, 2, 2]),  # 5 -> 2 and 3
        ("res4", 4, [0, 1, 1, 1]),  # 4 -> 2
        ("res5", 0, [1, 1, 0, 0]),
    ],
)
def test_miso_brings_each_level_to_its_place_in_p5(make_backbone, changed, cell, rows):
    backbone = make_backbone(MISO)
    backbone.bottom_up = Given()
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.ones_(layer.weight[:1, :1])  # one channel, which adds up its window
    features = {name: torch.zeros_like(value) for name, value in make_features(4).items()}
    features[changed][0, 0, cell, cell] = 1
    with torch.no_grad():
        p5 = backbone(features)["p5"][0, 0]
    weights = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(p5, weights[:, None] * weights)


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("size", [(33, 150), (32, 32), (101, 67)])
def test_a_retinanet_on_it_trains_and_detects_at_any_image_size(cfg, make_backbone, name, size):
    make_backbone(name)  # for its keys
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.IN_FEATURES = levels = ARRANGEMENTS[name]
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    sizes = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes if len(levels) > 1 else [[32, 64, 128, 256, 512]]
    torch.manual_seed(0)
    model = build_model(cfg)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor([[2.0, 3.0, 30.0, 29.0]]))
    instances.gt_classes = torch.tensor([1])
    image = {"image": torch.randint(0, 256, (3, *size)), "instances": instances}
    with EventStorage():
        losses = model.train()([image] * 2)  # two values for the batch norms of a 1x1 map
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
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
    with pytest.raises(ConfigError, match=rf"{name} takes in .*'res5': 32.*RESNETS\.OUT_FEATURES"):
        build_backbone(cfg)


def test_an_fcos_without_p5_is_refused_in_words(make_backbone):
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.IN_FEATURES is \['res3', 'res4'\].*res5"):
        make_backbone(OF_FCOS, IN_FEATURES=["res3", "res4"])


@pytest.mark.parametrize("name", [SIMO, MISO])
def test_an_unknown_norm_is_refused(make_backbone, name):
    with pytest.raises(ConfigError, match="unknown NORM 'bn'"):
        make_backbone(name, NORM="bn")
