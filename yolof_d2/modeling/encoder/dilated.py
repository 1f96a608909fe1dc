"""YOLOF's Dilated Encoder (paper, section 4.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ...errors import ConfigError
from ..layers import build_norm, conv_norm_act, init_conv_normal
from .build import ENCODER_REGISTRY, Encoder


class DilatedBottleneck(nn.Module):
    """Residual block 1x1, dilated 3x3, 1x1, each with norm and activation; none after the sum."""

    def __init__(
        self, channels: int, mid_channels: int, dilation: int, *, norm: str, activation: str
    ):
        super().__init__()
        conv = functools.partial(conv_norm_act, norm=norm, activation=activation)
        self.conv1 = nn.Sequential(*conv(channels, mid_channels, 1))
        self.conv2 = nn.Sequential(*conv(mid_channels, mid_channels, 3, dilation=dilation))
        self.conv3 = nn.Sequential(*conv(mid_channels, channels, 1))

    def forward(self, feature: Tensor) -> Tensor:
        return feature + self.conv3(self.conv2(self.conv1(feature)))


@ENCODER_REGISTRY.register()
class DilatedEncoder(Encoder):
    """A projector (1x1, 3x3), then residual blocks of growing dilation to cover object scales."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_channels: int,
        mid_channels: int,
        dilations: Sequence[int],
        norm: str = "BN",
        activation: str = "ReLU",
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature.
            num_channels: width of the output.
            mid_channels: width inside the residual blocks.
            dilations: one residual block per entry, each >= 1; empty leaves the projector alone.
            norm: Detectron2's name of the norm; the projector has norms too.
            activation: used inside the blocks; the projector has none.

        Raises:
            ConfigError: a dilation below 1, or an unknown norm or activation.
        """
        super().__init__()
        if any(dilation < 1 for dilation in dilations):
            raise ConfigError(
                "MODEL.YOLOF.ENCODER.DILATED.DILATIONS must be 1 or more each, "
                f"got {list(dilations)}"
            )
        self._output_shape = ShapeSpec(channels=num_channels, stride=input_shape.stride)

        self.lateral_conv = nn.Conv2d(input_shape.channels, num_channels, kernel_size=1)
        self.lateral_norm = build_norm(norm, num_channels)
        self.fpn_conv = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.fpn_norm = build_norm(norm, num_channels)
        self.dilated_encoder_blocks = nn.Sequential(
            *(
                DilatedBottleneck(
                    num_channels, mid_channels, dilation, norm=norm, activation=activation
                )
                for dilation in dilations
            )
        )

        c2_xavier_fill(self.lateral_conv)
        c2_xavier_fill(self.fpn_conv)
        init_conv_normal(self.dilated_encoder_blocks)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.DILATED
        return {
            "input_shape": input_shape,
            "num_channels": node.NUM_CHANNELS,
            "mid_channels": node.MID_CHANNELS,
            "dilations": node.DILATIONS,
            "norm": node.NORM,
            "activation": node.ACTIVATION,
        }

    def forward(self, feature: Tensor) -> Tensor:
        """Encode float (N, C_in, H, W) to float (N, ``num_channels``, H, W)."""
        projected = self.lateral_norm(self.lateral_conv(feature))
        projected = self.fpn_norm(self.fpn_conv(projected))
        return self.dilated_encoder_blocks(projected)

    def output_shape(self) -> ShapeSpec:
        return self._output_shape
