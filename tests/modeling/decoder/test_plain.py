from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.decoder import Decoder, ImplicitObjectnessDecoder, PlainDecoder

INPUT = ShapeSpec(channels=8, stride=32)


def make_decoder(**options) -> PlainDecoder:
    torch.manual_seed(0)
    options = {
        "num_anchors": 2,
        "num_classes": 3,
        "num_cls_convs": 1,
        "num_reg_convs": 1,
        **options,
    }
    return PlainDecoder(INPUT, **options)


def wake(decoder: Decoder) -> Decoder:
    """Draw weights so large that what each layer reads is seen in what is predicted."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.5)
    return decoder.eval()


def test_predictions_are_in_the_order_of_rows_columns_anchors():
    decoder = wake(make_decoder())
    feature = torch.randn(2, 8, 3, 5)
    logits, deltas = decoder(feature)
    for found, head, tower, dim in (
        (logits, decoder.cls_score, decoder.cls_subnet, 3),
        (deltas, decoder.bbox_pred, decoder.bbox_subnet, 4),
    ):
        maps = head(tower(feature))
        for row in range(3):
            for column in range(5):
                for anchor in range(2):
                    at = found[:, (row * 5 + column) * 2 + anchor]
                    channels = slice(anchor * dim, (anchor + 1) * dim)
                    assert torch.equal(at, maps[:, channels, row, column])


def test_with_a_sure_objectness_the_objectness_decoder_predicts_the_same():
    plain = wake(make_decoder(num_shared_convs=1))
    objectness = ImplicitObjectnessDecoder(
        INPUT, num_anchors=2, num_classes=3, num_shared_convs=1, num_cls_convs=1, num_reg_convs=1
    ).eval()
    missing, unexpected = objectness.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"object_pred.weight", "object_pred.bias"} and not unexpected
    nn.init.constant_(objectness.object_pred.bias, 1e4)
    feature = torch.randn(2, 8, 3, 5)
    for ours, expected in zip(plain(feature), objectness(feature), strict=True):
        torch.testing.assert_close(ours, expected)


def test_shared_convolutions_alone_feed_both_predictions():
    decoder = wake(make_decoder(num_shared_convs=4, num_cls_convs=0, num_reg_convs=0))
    names = {name.rsplit(".", 1)[0] for name in decoder.state_dict()}
    assert names - {"cls_score", "bbox_pred"} == {
        f"shared_subnet.{3 * i + layer}" for i in range(4) for layer in (0, 1)
    }
    feature = torch.randn(1, 8, 1, 1)
    logits, deltas = decoder(feature)
    shared = decoder.shared_subnet(feature)
    assert not torch.equal(shared, feature)
    assert torch.equal(logits.flatten(), decoder.cls_score(shared).flatten())
    assert torch.equal(deltas.flatten(), decoder.bbox_pred(shared).flatten())


def test_shared_convolutions_come_before_the_two_towers():
    decoder = wake(make_decoder(num_shared_convs=1))
    feature = torch.randn(1, 8, 1, 1)
    logits, deltas = decoder(feature)
    shared = decoder.shared_subnet(feature)
    expected = decoder.cls_score(decoder.cls_subnet(shared))
    assert torch.equal(logits.flatten(), expected.flatten())
    expected = decoder.bbox_pred(decoder.bbox_subnet(shared))
    assert torch.equal(deltas.flatten(), expected.flatten())


def test_parameters_have_the_names_of_the_public_checkpoints():
    decoder = make_decoder(num_reg_convs=2, norm="")
    modules = {name.rsplit(".", 1)[0] for name in decoder.state_dict()}
    assert modules == {
        *("cls_subnet.0", "bbox_subnet.0", "bbox_subnet.3"),
        *("cls_score", "bbox_pred"),
    }


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_class_scores_start_at_the_prior(prior):
    decoder = make_decoder(prior_prob=prior).eval()
    logits, deltas = decoder(torch.randn(1, 8, 4, 4))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, prior), rtol=0.5, atol=0)
    assert decoder.cls_score.bias.sigmoid().tolist() == pytest.approx([prior] * 6)
    assert deltas.abs().max() < 0.5


@pytest.mark.parametrize("options", [{"norm": "bn"}, {"activation": "Relu"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ConfigError, match="expected one of"):
        make_decoder(**options)
