from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from yolof_d2.modeling.decoder import ImplicitObjectnessDecoder, PlainDecoder

INPUT = ShapeSpec(channels=8, stride=32)
SIZES = {"num_anchors": 2, "num_classes": 3}


@pytest.mark.parametrize("convs", [(0, 1, 2), (1, 1, 1), (4, 0, 0)])
def test_with_a_sure_objectness_the_objectness_decoder_predicts_the_same(convs):
    options = dict(zip(("num_shared_convs", "num_cls_convs", "num_reg_convs"), convs, strict=True))
    torch.manual_seed(0)
    plain = PlainDecoder(INPUT, **SIZES, **options).eval()
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d):  # so large that each layer is seen in the predictions
            nn.init.normal_(layer.weight, std=0.5)
    objectness = ImplicitObjectnessDecoder(INPUT, **SIZES, **options).eval()
    missing, unexpected = objectness.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"object_pred.weight", "object_pred.bias"} and not unexpected
    nn.init.constant_(objectness.object_pred.bias, 1e4)
    feature = torch.randn(2, 8, 3, 5)
    for ours, expected in zip(plain(feature), objectness(feature), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_class_scores_start_at_the_prior(prior):
    torch.manual_seed(0)
    decoder = PlainDecoder(INPUT, **SIZES, prior_prob=prior).eval()
    logits, deltas = decoder(torch.randn(1, 8, 4, 4))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, prior), rtol=0.5, atol=0)
    assert decoder.cls_score.bias.sigmoid().tolist() == pytest.approx([prior] * 6)
    assert deltas.abs().max() < 0.5
