from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.modeling.backbone.arrangements import MISO, Given, make_features


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
