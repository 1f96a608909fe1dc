"""Names, levels and inputs of the feature arrangements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
