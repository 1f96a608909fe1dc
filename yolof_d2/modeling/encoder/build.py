"""The encoder slot: contract, registry and builder."""

from __future__ import annotations

from abc import ABC, abstractmethod

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from yolof_d2.modeling.registry import get_part

ENCODER_REGISTRY = Registry("YOLOF_ENCODER")
ENCODER_REGISTRY.__doc__ = """
Encoders: one feature map in, one out. Called as ``obj(cfg, input_shape)`` with the
:class:`ShapeSpec` of the backbone's feature; must return an :class:`Encoder`.
"""


class Encoder(nn.Module, ABC):
    """Turns the backbone's feature map into the one map that the decoder reads."""

    @abstractmethod
    def forward(self, feature: Tensor) -> Tensor:
        """Encode ``feature``, float (N, C_in, H, W), to float (N, C_out, H_out, W_out)."""

    @abstractmethod
    def output_shape(self) -> ShapeSpec:
        """Channels and stride (input pixels per cell) of what :meth:`forward` returns."""


def build_encoder(cfg: CfgNode, input_shape: ShapeSpec) -> Encoder:
    """Build the encoder named by ``cfg.MODEL.YOLOF.ENCODER.NAME``.

    Raises:
        ConfigError: no encoder of that name is registered.
    """
    return get_part(ENCODER_REGISTRY, cfg.MODEL.YOLOF.ENCODER.NAME, "MODEL.YOLOF.ENCODER.NAME")(
        cfg, input_shape
    )
