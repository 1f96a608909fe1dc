from __future__ import annotations

import sys

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

from tests.modeling.images import make_image, randomise, train_step
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import TimmBackbone

# Model: the module of the whole model whose output is each feature. timm's test models are its real
# architectures with few channels.
RESNET = {"res1": "act1", "res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}
STAGES = {"res2": "stages.0", "res3": "stages.1", "res4": "stages.2", "res5": "stages.3"}
MODELS = {
    "test_resnet": RESNET,
    "test_efficientnet": {f"res{n}": f"blocks.{n - 1}" for n in range(1, 6)},
    "mobilenetv3_small_050": {
        "res1": "bn1",
        "res2": "blocks.0",
        "res3": "blocks.1",
        "res4": "blocks.3",
        "res5": "blocks.5",
    },
    "test_convnext": STAGES,
    "test_mambaout": STAGES,  # (N, H, W, C) within
    "test_vit": {"res4": "blocks.5"},  # of three features of stride 16, the deepest
}
SWIN = "swin_tiny_patch4_window7_224"
FEATURES = [(name, f) for name in MODELS if name.startswith("test_") for f in MODELS[name]]
LAST = {name: list(layers)[-1] for name, layers in MODELS.items()}


def make(name: str, *, randomize_norms: bool = False, **options) -> TimmBackbone:
    torch.manual_seed(0)
    model = TimmBackbone(name, **{"out_features": [LAST.get(name, "res5")], **options})
    if randomize_norms:
        randomise(model)
    return model


def with_channels_first(output: Tensor, name: str) -> Tensor:
    """Of what a module of the whole model gives for images of 64 x 96 pixels."""
    if name == "test_vit":  # a token for the class, then one for each of 4 x 6 cells
        return output[:, -24:].transpose(1, 2).unflatten(2, (4, 6))
    return output.permute(0, 3, 1, 2) if name in ("test_mambaout", SWIN) else output


@pytest.mark.parametrize("name", [*MODELS, SWIN])
def test_features_are_the_outputs_of_the_stages_of_the_whole_model(name):
    layers = MODELS.get(name) or {f"res{n}": f"layers.{n - 2}" for n in range(2, 6)}
    model = make(name, out_features=list(layers), randomize_norms=True).eval()
    of_any_size = {"dynamic_img_size": True} if name in ("test_vit", SWIN) else {}
    whole = timm.create_model(name, **of_any_size).eval()
    mismatch = whole.load_state_dict(model.body.model.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    expected = {}
    for feature, module in layers.items():
        whole.get_submodule(module).register_forward_hook(
            # Cloned, because the next layer may work in place.
            lambda _, __, output, feature=feature: expected.update({feature: output.clone()})
        )
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model(images)
        whole(images)
    assert list(features) == list(layers)
    for feature, value in features.items():
        torch.testing.assert_close(value, with_channels_first(expected[feature], name))


@pytest.mark.parametrize("size", [(32, 64), (160, 96)])
@pytest.mark.parametrize("name", [*MODELS, SWIN])
def test_shapes_are_the_promised_ones_at_any_size(name, size):
    features = list(MODELS.get(name, STAGES))
    model = make(name, out_features=features).eval()
    shapes = model.output_shape()
    assert list(shapes) == features
    assert model.size_divisibility == max(shape.stride for shape in shapes.values())
    for feature, value in model(torch.randn(1, 3, *size)).items():
        stride = 2 ** int(feature[3:])
        assert shapes[feature].stride == stride
        assert value.shape == (1, shapes[feature].channels, size[0] // stride, size[1] // stride)


@pytest.mark.parametrize(
    ("name", "out_features"),
    [*((name, [feature]) for name, feature in FEATURES), ("test_resnet", ["res4", "res2"])],
)
def test_what_comes_after_the_last_feature_is_not_built(name, out_features):
    model = make(name, out_features=out_features)
    features = model(torch.randn(2, 3, 64, 64))
    assert list(features) == list(model.output_shape()) == out_features
    sum(feature.sum() for feature in features.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "feature"), FEATURES)
def test_freezing_stops_what_a_feature_depends_on_and_nothing_else(name, feature):
    features = list(MODELS[name])
    free = make(name, out_features=features)
    parameters = dict(free.named_parameters())
    gradients = torch.autograd.grad(
        free(torch.randn(2, 3, 64, 64))[feature].sum(), parameters.values(), allow_unused=True
    )
    depends = {
        parameter
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    }

    model = make(name, out_features=features, freeze_at=int(feature[3:])).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(parameters) - depends
    # The statistics of batch norms stand still with their weights.
    before = {n: value.clone() for n, value in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    moved = {n for n, value in model.state_dict().items() if not value.equal(before[n])}
    norms = {n for n in before if n.endswith(("running_mean", "running_var"))}
    frozen_norms = {n for n in norms if f"{n.rsplit('.', 1)[0]}.weight" in depends}
    assert moved & norms == norms - frozen_norms


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext"])
def test_frozen_batch_norms_give_the_same_and_stand_still(name):
    free = make(name, randomize_norms=True).eval()
    frozen = make(name, norm="FrozenBN")
    frozen.load_state_dict(free.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = free(images)[LAST[name]]
        for _ in range(2):  # the first must not change the second
            torch.testing.assert_close(frozen.train()(images)[LAST[name]], expected)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    assert any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_yolof_on_it_is_built_from_the_config_and_trains(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.TIMM.NAME = "test_convnext"
    model = build_model(cfg)
    assert model.backbone.output_shape() == {"res5": ShapeSpec(channels=64, stride=32)}
    train_step(model, [make_image(50, 70, [(5, 5, 40, 40)])] * 2)


def test_the_number_of_input_channels_follows_the_pixel_mean(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.PIXEL_MEAN = [0.0]
    assert build_backbone(cfg)(torch.rand(2, 1, 32, 32))["res5"].shape[2:] == (1, 1)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("weights", ["", "model.pth"])
def test_weights_are_downloaded_only_when_asked_for_and_no_others_are_named(
    cfg, monkeypatch, pretrained, weights
):
    real, asked = timm.create_model, []

    def without_network(name, *, pretrained=False, **options):
        asked.append(pretrained)
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.update(NAME="test_resnet", PRETRAINED=pretrained)
    cfg.MODEL.WEIGHTS = weights
    build_backbone(cfg)
    assert sum(asked) == (pretrained and not weights)


@pytest.mark.parametrize("error", [OSError("no connection"), RuntimeError("no weights exist")])
def test_weights_that_cannot_be_had_are_one_message(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConfigError, match=f"MODEL.TIMM.NAME 'resnet18' cannot be built: {error}"):
        make("resnet18", pretrained=True)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        make("resnet18")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet118", {}, "TIMM.NAME is 'resnet118', .* does not have; did you mean resnet18, "),
        ("hf-hub:timm/resnet18", {}, "TIMM.NAME is 'hf-hub:timm/resnet18', .*did you mean"),
        ("resnet18.best", {}, "TIMM.NAME 'resnet18.best' cannot be built: .*tag"),
        ("test_maxvit", {}, "TIMM.NAME 'test_maxvit' cannot be used: .* one size only"),
        ("inception_v4", {}, "TIMM.OUT_FEATURES is .* of 'inception_v4', .* none of use here"),
        (
            "test_convnext",
            {"out_features": ["res1", "res5"]},
            r"TIMM.OUT_FEATURES is \['res1', 'res5'\]; .* which are: res2, res3, res4, res5$",
        ),
        ("test_resnet", {"out_features": []}, r"TIMM.OUT_FEATURES is \[\]; expected one or more"),
        ("test_resnet", {"norm": "GN"}, "TIMM.NORM must be 'BN' or 'FrozenBN', got 'GN'"),
        (
            "test_convnext",
            {"freeze_at": 1},
            "BACKBONE.FREEZE_AT is 1, but .* res1; its features are res2, .* 0 freezes nothing",
        ),
    ],
)
def test_impossible_settings_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=f"MODEL.{message}"):
        make(name, **options)
