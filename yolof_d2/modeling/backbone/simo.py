"""SiMo, single in, multiple out: a pyramid from C5 alone (YOLOF, Figure 1)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor
from torch.nn import functional as F

from .fpn import build_bottom_up, fpn_conv


class SingleInMultipleOut(Backbone):
    """Computes FPN's five levels from C5 alone.

    p5 is FPN's: a 1x1 projection of C5, then a 3x3 convolution. p4 and p3 are FPN's without the
    lateral connections: the projection, enlarged 2 and 4 times by nearest neighbours, then a 3x3
    convolution each. p6 and p7 are RetinaNet's.
    """

    def __init__(self, bottom_up: Backbone, *, out_channels: int, norm: str = ""):
        """
        Args:
            bottom_up: gives ``res5`` of stride 32.
            out_channels: width of each level.
            norm: after each convolution of p3, p4 and p5, as in FPN.

        Raises:
            ConfigError: an unknown norm.
        """
        super().__init__()
        self.bottom_up = bottom_up
        in_channels = bottom_up.output_shape()["res5"].channels
        self.fpn_lateral5 = fpn_conv(in_channels, out_channels, 1, norm)
        self.fpn_output3 = fpn_conv(out_channels, out_channels, 3, norm)
        self.fpn_output4 = fpn_conv(out_channels, out_channels, 3, norm)
        self.fpn_output5 = fpn_conv(out_channels, out_channels, 3, norm)
        self.top_block = LastLevelP6P7(in_channels, out_channels)
        self._out_feature_strides = {f"p{level}": 2**level for level in range(3, 8)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, h, w) to p3 to p7, float (N, ``out_channels``, h / stride, w / stride)."""
        c5 = self.bottom_up(images)["res5"]
        projected = self.fpn_lateral5(c5)
        p6, p7 = self.top_block(c5)
        return {
            "p3": self.fpn_output3(F.interpolate(projected, scale_factor=4.0, mode="nearest")),
            "p4": self.fpn_output4(F.interpolate(projected, scale_factor=2.0, mode="nearest")),
            "p5": self.fpn_output5(projected),
            "p6": p6,
            "p7": p7,
        }


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_simo_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build :class:`SingleInMultipleOut` on a ResNet, from ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Raises:
        ConfigError: the ResNet does not give res5 of stride 32.
    """
    bottom_up = build_bottom_up(cfg, input_shape, ["res5"])
    return SingleInMultipleOut(
        bottom_up, out_channels=cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM
    )
