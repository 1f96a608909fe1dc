"""YOLOF's Uniform Matching: the same number of positives for every object (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from yolof_d2.checks import require
from yolof_d2.modeling.box_ops import xyxy_to_cxcywh
from yolof_d2.modeling.training_map import warn_of_c5_values

from .build import MATCHER_REGISTRY, GroundTruth
from .ranking import RankingMatcher, check_topk

CANDIDATES = ("predictions", "anchors")


@MATCHER_REGISTRY.register()
class UniformMatcher(RankingMatcher):
    """Pairs every ground truth with its ``topk`` nearest predictions and ``topk`` nearest anchors.

    Nearest is the smallest L1 distance of (centre x, centre y, width, height) in pixels; which of
    equally near ones are taken is up to ``torch.topk``. The author's code takes predictions and
    anchors (37.7 AP), the paper's text anchors only (37.1 AP). Labels, and what is ignored: see
    :class:`RankingMatcher`; predictions rank before anchors.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        topk: int = 4,
        candidates: Sequence[str] = CANDIDATES,
        pos_ignore_iou: float = 0.15,
        neg_ignore_iou: float = 0.7,
    ):
        """
        Args:
            num_classes: K, the label of background.
            topk: nearest of each kind of candidate, per ground truth; fewer when there are fewer
                anchors.
            candidates: "predictions", "anchors", or both in any order.
            pos_ignore_iou, neg_ignore_iou: in [0, 1].

        Raises:
            ConfigError: ``topk`` below 1, a threshold outside [0, 1], no candidates, or others.
        """
        super().__init__(
            "UNIFORM",
            num_classes=num_classes,
            topk=topk,
            pos_ignore_iou=pos_ignore_iou,
            neg_ignore_iou=neg_ignore_iou,
        )
        self.candidates = [name for name in CANDIDATES if name in candidates]
        require(
            len(self.candidates) == len(candidates) > 0,
            "MODEL.YOLOF.MATCHER.UNIFORM.CANDIDATES",
            f"name one or both of {list(CANDIDATES)}, each once",
            candidates,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.UNIFORM
        check_topk(cfg, input_shape, num_anchors, "UNIFORM")
        warn_of_c5_values(
            cfg,
            input_shape,
            "MODEL.YOLOF.MATCHER.UNIFORM",
            TOPK=(4, 8),
            POS_IGNORE_IOU=(0.15, 0.1),
        )
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "topk": node.TOPK,
            "candidates": node.CANDIDATES,
            "pos_ignore_iou": node.POS_IGNORE_IOU,
            "neg_ignore_iou": node.NEG_IGNORE_IOU,
        }

    def rank(
        self, anchors: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> tuple[Tensor, Tensor]:
        boxes = {"predictions": pred_boxes, "anchors": anchors.expand_as(pred_boxes)}
        nearest = [self._nearest(ground_truth.boxes, boxes[name]) for name in self.candidates]
        return torch.stack(nearest, dim=2), ground_truth.valid[:, None, None]

    def _nearest(self, gt_boxes: Tensor, boxes: Tensor) -> Tensor:
        """Return indices (N, k, M) of the ``boxes`` (N, R, 4) nearest to ``gt_boxes`` (N, M, 4)."""
        cost = torch.cdist(
            xyxy_to_cxcywh(gt_boxes), xyxy_to_cxcywh(boxes), p=1
        )  # (N, M, R): never across images
        return cost.topk(min(self.topk, boxes.shape[1]), dim=2, largest=False).indices.transpose(
            1, 2
        )
