"""Atrous spatial pyramid pooling as an encoder: dilations in parallel instead of in a chain."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec
from torch import Tensor

from yolof_d2.checks import check_at_least
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import build_activation, build_norm

from .build import ENCODER_REGISTRY, Encoder


@ENCODER_REGISTRY.register()
class ASPPEncoder(Encoder):
    """Detectron2's ASPP on the backbone's map (Chen et al., "Rethinking Atrous Convolution", 2017).

    A 1x1 convolution, three dilated 3x3 convolutions and the mean of the image, all on the same map
    and of the same width; a last 1x1 convolution joins them. All have a norm, but for the one after
    the mean, whose single value per image and channel batch norm could not take. All have an
    activation.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_channels: int,
        dilations: Sequence[int],
        norm: str = "BN",
        activation: str = "ReLU",
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature.
            num_channels: width of each branch and of the output.
            dilations: of the 3x3 convolutions; exactly three, each >= 1.
            norm: Detectron2's name of the norm.
            activation: after each convolution.

        Raises:
            ConfigError: ``num_channels`` below 1, other dilations than three of 1 or more, or an
                unknown norm or activation.
        """
        super().__init__()
        check_at_least(1, "MODEL.YOLOF.ENCODER.ASPP", NUM_CHANNELS=num_channels)
        if len(dilations) != 3 or min(dilations) < 1:
            raise ConfigError(
                "MODEL.YOLOF.ENCODER.ASPP.DILATIONS must be exactly three numbers, 1 or more each, "
                f"got {list(dilations)}"
            )
        self._output_shape = ShapeSpec(channels=num_channels, stride=input_shape.stride)
        self.aspp = ASPP(
            input_shape.channels,
            num_channels,
            list(dilations),
            # ASPP gives its convolutions a bias only if this is "".
            norm=functools.partial(build_norm, norm) if norm else "",
            activation=build_activation(activation),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.ASPP
        return {
            "input_shape": input_shape,
            "num_channels": node.NUM_CHANNELS,
            "dilations": node.DILATIONS,
            "norm": node.NORM,
            "activation": node.ACTIVATION,
        }

    def forward(self, feature: Tensor) -> Tensor:
        """Encode float (N, C_in, H, W) to float (N, ``num_channels``, H, W)."""
        return self.aspp(feature)

    def output_shape(self) -> ShapeSpec:
        return self._output_shape
