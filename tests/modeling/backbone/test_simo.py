from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.modeling.backbone.arrangements import MIMO, PYRAMID, SIMO


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
