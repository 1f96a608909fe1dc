"""The projector alone, without layers that cover object scales."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from yolof_d2.checks import check_at_least
from yolof_d2.modeling.layers import build_norm

from .build import ENCODER_REGISTRY, Encoder


@ENCODER_REGISTRY.register()
class ProjectorEncoder(Encoder):
    """A 1x1 and a 3x3 convolution, each with a norm and no activation.

    The single-in-single-out (SiSo) baseline of the paper's section 3, and the part of the Dilated
    Encoder before its residual blocks.
    """

    _node = "PROJECTOR"  # under MODEL.YOLOF.ENCODER

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_channels: int, norm: str = "BN"):
        """
        Args:
            input_shape: channels and stride of the backbone's feature.
            num_channels: width of the output.
            norm: Detectron2's name of the norm.

        Raises:
            ConfigError: ``num_channels`` below 1, or an unknown norm.
        """
        super().__init__()
        check_at_least(1, f"MODEL.YOLOF.ENCODER.{self._node}", NUM_CHANNELS=num_channels)
        self._output_shape = ShapeSpec(channels=num_channels, stride=input_shape.stride)

        self.lateral_conv = nn.Conv2d(input_shape.channels, num_channels, kernel_size=1)
        self.lateral_norm = build_norm(norm, num_channels)
        self.fpn_conv = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.fpn_norm = build_norm(norm, num_channels)

        c2_xavier_fill(self.lateral_conv)
        c2_xavier_fill(self.fpn_conv)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.PROJECTOR
        return {"input_shape": input_shape, "num_channels": node.NUM_CHANNELS, "norm": node.NORM}

    def forward(self, feature: Tensor) -> Tensor:
        """Encode float (N, C_in, H, W) to float (N, ``num_channels``, H, W)."""
        projected = self.lateral_norm(self.lateral_conv(feature))
        return self.fpn_norm(self.fpn_conv(projected))

    def output_shape(self) -> ShapeSpec:
        return self._output_shape
