"""The decoder slot: contract, registry and builder."""

from __future__ import annotations

from abc import ABC, abstractmethod

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from yolof_d2.modeling.registry import get_part

DECODER_REGISTRY = Registry("YOLOF_DECODER")
DECODER_REGISTRY.__doc__ = """
Decoders: the encoder's map in, class logits and box deltas of every anchor out. Called as
``obj(cfg, input_shape, num_anchors)`` with the :class:`ShapeSpec` of the encoder's output and the
number of anchors per cell; must return a :class:`Decoder`.
"""


class Decoder(nn.Module, ABC):
    """Predicts class logits and box deltas for each anchor of each cell."""

    @abstractmethod
    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from ``feature``, float (N, C, H, W), in the anchor generator's order (H, W, A).

        Returns:
            logits: float32 (N, R, K), R = H * W * A anchors, K classes; ``sigmoid`` gives the
                scores.
            deltas: float32 (N, R, 4), the (dx, dy, dw, dh) of the box transform.
        """


def build_decoder(cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> Decoder:
    """Build the decoder named by ``cfg.MODEL.YOLOF.DECODER.NAME``.

    Raises:
        ConfigError: no decoder of that name is registered.
    """
    decoder = get_part(DECODER_REGISTRY, cfg.MODEL.YOLOF.DECODER.NAME, "MODEL.YOLOF.DECODER.NAME")
    return decoder(cfg, input_shape, num_anchors)
