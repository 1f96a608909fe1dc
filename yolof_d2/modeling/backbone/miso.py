"""MiSo, multiple in, single out: C3, C4 and C5 fused into one map (YOLOF, Figure 1)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from .fpn import build_bottom_up, fpn_conv


class MultipleInSingleOut(Backbone):
    """Fuses C3, C4 and C5 into p5.

    FPN reversed: from C3 on, a 3x3 convolution of stride 2 halves the sum so far, which is added to
    the 1x1 projection of the next level; a 3x3 convolution of the last sum gives p5.
    """

    def __init__(self, bottom_up: Backbone, *, out_channels: int, norm: str = ""):
        """
        Args:
            bottom_up: gives ``res3``, ``res4`` and ``res5`` of strides 8, 16 and 32.
            out_channels: width of p5, and of the projections.
            norm: after each convolution.

        Raises:
            ConfigError: an unknown norm.
        """
        super().__init__()
        self.bottom_up = bottom_up
        shapes = bottom_up.output_shape()
        self.fpn_lateral3 = fpn_conv(shapes["res3"].channels, out_channels, 1, norm)
        self.fpn_lateral4 = fpn_conv(shapes["res4"].channels, out_channels, 1, norm)
        self.fpn_lateral5 = fpn_conv(shapes["res5"].channels, out_channels, 1, norm)
        self.downsample3 = fpn_conv(out_channels, out_channels, 3, norm, stride=2)
        self.downsample4 = fpn_conv(out_channels, out_channels, 3, norm, stride=2)
        self.fpn_output5 = fpn_conv(out_channels, out_channels, 3, norm)
        self._out_features = ["p5"]
        self._out_feature_strides = {"p5": 32}
        self._out_feature_channels = {"p5": out_channels}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map float (N, 3, h, w) to p5, float (N, ``out_channels``, h / 32, w / 32)."""
        features = self.bottom_up(images)
        fused = self.fpn_lateral3(features["res3"])
        fused = self.fpn_lateral4(features["res4"]) + self.downsample3(fused)
        fused = self.fpn_lateral5(features["res5"]) + self.downsample4(fused)
        return {"p5": self.fpn_output5(fused)}


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_miso_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build :class:`MultipleInSingleOut` on a ResNet, from ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Raises:
        ConfigError: the ResNet does not give res3, res4 and res5 of strides 8, 16 and 32.
    """
    bottom_up = build_bottom_up(cfg, input_shape, ["res3", "res4", "res5"])
    return MultipleInSingleOut(
        bottom_up, out_channels=cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM
    )
