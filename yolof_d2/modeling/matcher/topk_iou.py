"""The same number of positives for every object, chosen by the overlap of the anchors alone."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from .build import MATCHER_REGISTRY, GroundTruth
from .common import pairwise_iou
from .ranking import RankingMatcher, check_topk


@MATCHER_REGISTRY.register()
class TopKIoUMatcher(RankingMatcher):
    """Pairs every ground truth with the ``topk`` anchors that overlap it most.

    Uniform Matching with IoU in place of the L1 distance, and anchors as the only candidates. Of
    equal overlaps the anchor of the lower index goes first. An anchor that does not overlap a
    ground truth at all is never paired with it. Labels, and what is ignored: see
    :class:`RankingMatcher`.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        topk: int = 4,
        pos_ignore_iou: float = 0.15,
        neg_ignore_iou: float = 0.7,
    ):
        """
        Args:
            num_classes: K, the label of background.
            topk: anchors per ground truth; fewer when fewer overlap it.
            pos_ignore_iou, neg_ignore_iou: in [0, 1].

        Raises:
            ConfigError: ``topk`` below 1, or a threshold outside [0, 1].
        """
        super().__init__(
            "TOPK_IOU",
            num_classes=num_classes,
            topk=topk,
            pos_ignore_iou=pos_ignore_iou,
            neg_ignore_iou=neg_ignore_iou,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.TOPK_IOU
        check_topk(cfg, input_shape, num_anchors, "TOPK_IOU")
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "topk": node.TOPK,
            "pos_ignore_iou": node.POS_IGNORE_IOU,
            "neg_ignore_iou": node.NEG_IGNORE_IOU,
        }

    def rank(
        self, anchors: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> tuple[Tensor, Tensor]:
        # A stable sort, not topk, whose choice among equal overlaps is not defined.
        overlap, anchor_idx = pairwise_iou(anchors, ground_truth).sort(
            dim=2, descending=True, stable=True
        )  # (N, M, R)
        overlap, anchor_idx = (
            ranked[..., : self.topk].transpose(1, 2)[:, :, None] for ranked in (overlap, anchor_idx)
        )
        return anchor_idx, overlap > 0
