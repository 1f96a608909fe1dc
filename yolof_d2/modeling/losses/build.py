"""The loss slot: contract, registry and builder."""

from __future__ import annotations

from abc import ABC, abstractmethod

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor

from yolof_d2.modeling.matcher import GroundTruth, MatchResult
from yolof_d2.modeling.registry import get_part

LOSS_REGISTRY = Registry("YOLOF_LOSS")
LOSS_REGISTRY.__doc__ = """
Losses: compare predictions with the targets of the matcher. Called as ``obj(cfg)``; must return a
:class:`DetectionLoss`.
"""


class DetectionLoss(ABC):
    """Turns predictions and a match into named scalar losses."""

    @abstractmethod
    def __call__(
        self,
        anchors: Tensor,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        match: MatchResult,
        ground_truth: GroundTruth,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch. Every rank must call it: it may communicate.

        Args:
            anchors: float32 (R, 4) XYXY pixels, the same for every image.
            pred_logits: float32 (N, R, K).
            pred_boxes: float32 (N, R, 4) XYXY pixels.
            match: labels and positive pairs of the same N images.
            ground_truth: padded boxes and classes.

        Returns:
            Scalars whose sum is minimised, by name.
        """


def build_loss(cfg: CfgNode) -> DetectionLoss:
    """Build the loss named by ``cfg.MODEL.YOLOF.LOSS.NAME``.

    Raises:
        ConfigError: no loss of that name is registered.
    """
    return get_part(LOSS_REGISTRY, cfg.MODEL.YOLOF.LOSS.NAME, "MODEL.YOLOF.LOSS.NAME")(cfg)
