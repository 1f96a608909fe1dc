"""YOLOF's Dilated Encoder (paper, section 4.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from yolof_d2.checks import check_at_least
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import conv_norm_act, init_conv_normal
from yolof_d2.modeling.training_map import count_cells, warn_of_c5_values

from .build import ENCODER_REGISTRY
from .projector import ProjectorEncoder


class DilatedBottleneck(nn.Module):
    """Residual block 1x1, dilated 3x3, 1x1, each with norm and activation; none after the sum."""

    def __init__(
        self,
        channels: int,
        mid_channels: int,
        dilation: int,
        *,
        shortcut: bool,
        norm: str,
        activation: str,
    ):
        super().__init__()
        self.shortcut = shortcut
        conv = functools.partial(conv_norm_act, norm=norm, activation=activation)
        self.conv1 = nn.Sequential(*conv(channels, mid_channels, 1))
        self.conv2 = nn.Sequential(*conv(mid_channels, mid_channels, 3, dilation=dilation))
        self.conv3 = nn.Sequential(*conv(mid_channels, channels, 1))

    def forward(self, feature: Tensor) -> Tensor:
        change = self.conv3(self.conv2(self.conv1(feature)))
        return feature + change if self.shortcut else change


@ENCODER_REGISTRY.register()
class DilatedEncoder(ProjectorEncoder):
    """A projector (1x1, 3x3), then residual blocks of growing dilation to cover object scales."""

    _node = "DILATED"

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_channels: int,
        mid_channels: int,
        dilations: Sequence[int],
        shortcut: bool = True,
        norm: str = "BN",
        activation: str = "ReLU",
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature.
            num_channels: width of the output.
            mid_channels: width inside the blocks.
            dilations: one block per entry, each >= 1; empty leaves the projector alone.
            shortcut: each block adds to its input; without, the blocks are a plain chain, and the
                smaller scales of the projector are lost (Table 5c).
            norm: Detectron2's name of the norm; the projector has norms too.
            activation: used inside the blocks; the projector has none.

        Raises:
            ConfigError: a width or a dilation below 1, or an unknown norm or activation.
        """
        check_at_least(
            1,
            f"MODEL.YOLOF.ENCODER.{self._node}",
            NUM_CHANNELS=num_channels,
            MID_CHANNELS=mid_channels,
        )
        if any(dilation < 1 for dilation in dilations):
            raise ConfigError(
                f"MODEL.YOLOF.ENCODER.{self._node}.DILATIONS must be 1 or more each, "
                f"got {list(dilations)}"
            )
        # Built before the projector: building draws random numbers too, and in this order a seed
        # gives the weights it always gave.
        blocks = nn.Sequential(
            *(
                DilatedBottleneck(
                    num_channels,
                    mid_channels,
                    dilation,
                    shortcut=shortcut,
                    norm=norm,
                    activation=activation,
                )
                for dilation in dilations
            )
        )
        super().__init__(input_shape, num_channels=num_channels, norm=norm)
        self.dilated_encoder_blocks = blocks
        init_conv_normal(self.dilated_encoder_blocks)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.DILATED
        _, longest = count_cells(cfg, input_shape)
        if max(node.DILATIONS, default=0) >= longest:
            raise ConfigError(
                f"MODEL.YOLOF.ENCODER.DILATED.DILATIONS is {node.DILATIONS}, but at stride "
                f"{input_shape.stride} the longest side of a training image has {longest} cells "
                "(INPUT.MAX_SIZE_TRAIN): such a convolution reads nothing but padding beside its "
                "centre"
            )
        published = ([2, 4, 6, 8], [4, 8, 12, 16])
        warn_of_c5_values(cfg, input_shape, "MODEL.YOLOF.ENCODER.DILATED", DILATIONS=published)
        return {
            "input_shape": input_shape,
            "num_channels": node.NUM_CHANNELS,
            "mid_channels": node.MID_CHANNELS,
            "dilations": node.DILATIONS,
            "shortcut": node.SHORTCUT,
            "norm": node.NORM,
            "activation": node.ACTIVATION,
        }

    def forward(self, feature: Tensor) -> Tensor:
        """Encode float (N, C_in, H, W) to float (N, ``num_channels``, H, W)."""
        return self.dilated_encoder_blocks(super().forward(feature))
