from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from yolof_d2.modeling.decoder import ImplicitObjectnessDecoder, build_decoder
from yolof_d2.modeling.decoder.implicit_objectness import fold_objectness

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]
GRID = torch.tensor([-100, -50, -20, -12, -5, -1, -0.1, 0, 0.1, 1, 5, 12, 18.4, 18.5, 20, 50, 100])


def exact(cls: Tensor, obj: Tensor) -> Tensor:
    """logit(p) = -log(1 / p - 1), with 1 / p = (1 + e^-cls) (1 + e^-obj), in float64."""
    cls, obj = cls.double(), obj.double()
    return -torch.logsumexp(torch.stack((-cls, -obj, -cls - obj)), dim=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_is_exact_and_finite_for_logits_up_to_100(dtype):
    # Trap 1: e^100 is infinite in float32, and e^12 in float16.
    grid = torch.cartesian_prod(GRID, GRID).to(dtype)
    cls, obj = grid.T.clone().requires_grad_()
    cls.retain_grad(), obj.retain_grad()
    folded = fold_objectness(cls, obj)
    assert folded.dtype == torch.float32
    torch.testing.assert_close(folded.double(), exact(cls, obj), rtol=1e-5, atol=1e-5)

    folded.sum().backward()
    cls64, obj64 = (t.detach().double().requires_grad_() for t in (cls, obj))
    exact(cls64, obj64).sum().backward()
    for ours, expected in ((cls.grad, cls64.grad), (obj.grad, obj64.grad)):
        assert ours.isfinite().all()
        atol = max(1e-5, torch.finfo(dtype).eps)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("cls", "obj", "expected"),
    [(1e7, 0.4, 0.4), (0.4, 1e7, 0.4), (-1e7, 0.4, -1e7), (-1e7, 1e7, -1e7), (3e38, 3e38, 3e38)],
)
def test_folding_neither_cancels_nor_overflows_far_out(cls, obj, expected):
    folded = fold_objectness(torch.tensor(cls), torch.tensor(obj))
    torch.testing.assert_close(folded, torch.tensor(expected))


@settings(deadline=None)
@given(st.floats(-12, 12), st.floats(-12, 12))
def test_folded_score_is_the_product_of_the_two_scores(cls, obj):
    cls, obj = (torch.tensor(value, dtype=torch.float64) for value in (cls, obj))
    folded = fold_objectness(cls, obj).double().sigmoid()
    torch.testing.assert_close(folded, cls.sigmoid() * obj.sigmoid(), rtol=1e-4, atol=0)


def make_decoder(**options) -> ImplicitObjectnessDecoder:
    torch.manual_seed(0)
    sizes = {"num_anchors": 2, "num_classes": 3, "num_cls_convs": 1, "num_reg_convs": 1}
    options = {**sizes, **options}
    return ImplicitObjectnessDecoder(ShapeSpec(channels=8, stride=32), **options)


@pytest.mark.parametrize("head", ["cls_score", "bbox_pred", "object_pred"])
@pytest.mark.parametrize(("row", "column", "anchor"), [(0, 0, 0), (1, 2, 1), (2, 4, 0), (0, 3, 1)])
def test_predictions_are_in_the_order_of_the_anchor_generator(head, row, column, anchor):
    decoder = make_decoder(num_cls_convs=0, num_reg_convs=0)
    dims = {"cls_score": 3, "bbox_pred": 4, "object_pred": 1}[head]
    feature = torch.zeros(2, 8, 3, 5)
    feature[1, 0, row, column] = 1
    with torch.no_grad():
        before = decoder(torch.zeros_like(feature))
        nn.init.zeros_(decoder.get_submodule(head).weight)
        nn.init.constant_(decoder.get_submodule(head).weight[anchor * dims, 0, 1, 1], 5)
        for other in {"cls_score", "bbox_pred", "object_pred"} - {head}:
            nn.init.zeros_(decoder.get_submodule(other).weight)
        logits, deltas = (a - b for a, b in zip(decoder(feature), before, strict=True))

    index = (row * 5 + column) * 2 + anchor
    changed = (logits if head != "bbox_pred" else deltas).nonzero().tolist()
    unchanged = deltas if head != "bbox_pred" else logits
    assert not unchanged.any()
    # An objectness is shared by all classes of its anchor.
    assert changed == [[1, index, k] for k in range(3 if head == "object_pred" else 1)]

    generator = DefaultAnchorGenerator(
        sizes=[[32, 64]], aspect_ratios=[[1.0]], strides=[32], offset=0.0
    )
    x0, y0, x1, y1 = generator([feature])[0].tensor[index].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == (column * 32, row * 32)
    assert x1 - x0 == [32, 64][anchor]


def test_class_scores_start_at_the_prior():
    decoder = make_decoder(prior_prob=0.01)
    bias = decoder.get_submodule("cls_score").bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((6,), 0.01))
    logits, deltas = decoder.eval()(torch.randn(1, 8, 4, 4))
    # Objectness starts at one half.
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.005), rtol=0.5, atol=0)
    assert deltas.abs().max() < 0.5


def test_published_decoder_has_its_published_number_of_weights(cfg):
    cfg.MODEL.YOLOF.NUM_CLASSES = 80
    decoder = build_decoder(cfg, ShapeSpec(channels=512, stride=32), num_anchors=5)
    convs = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(conv.weight.numel() for conv in convs) == 16_114_176


def test_parameters_have_the_names_of_the_public_checkpoints():
    decoder = make_decoder(num_reg_convs=2, norm="")
    modules = {name.rsplit(".", 1)[0] for name in decoder.state_dict()}
    assert modules == {
        *("cls_subnet.0", "bbox_subnet.0", "bbox_subnet.3"),
        *("cls_score", "bbox_pred", "object_pred"),
    }


@pytest.mark.parametrize(("num_cls_convs", "num_reg_convs"), [(0, 0), (0, 1), (1, 0)])
def test_objectness_reads_what_the_boxes_are_predicted_from(num_cls_convs, num_reg_convs):
    decoder = make_decoder(
        num_shared_convs=4, num_cls_convs=num_cls_convs, num_reg_convs=num_reg_convs
    )
    for layer in decoder.eval().modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.5)  # what is read is seen in what is predicted
    feature = torch.randn(1, 8, 1, 1)
    shared = decoder.shared_subnet(feature)
    assert not torch.equal(shared, feature)
    regression = decoder.bbox_subnet(shared)
    logits, deltas = decoder(feature)
    object_logits = decoder.object_pred(regression).view(2, 1).expand(2, 3)
    assert object_logits.abs().min() > 1e-3
    expected = exact(decoder.cls_score(decoder.cls_subnet(shared)).view(2, 3), object_logits)
    torch.testing.assert_close(logits[0].double(), expected)
    assert torch.equal(deltas.flatten(), decoder.bbox_pred(regression).flatten())


def test_a_seed_gives_the_weights_of_all_layers_built_and_then_all_initialised():
    decoder = make_decoder()
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, out_channels, 3) for out_channels in (8, 8, 2 * 3, 2 * 4, 2)]
    for conv in convs:
        nn.init.normal_(conv.weight, std=0.01)
    ours = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert ours[-1] is decoder.object_pred and not decoder.object_pred.bias.any()
    for conv, expected in zip(ours, convs, strict=True):
        assert torch.equal(conv.weight, expected.weight)
