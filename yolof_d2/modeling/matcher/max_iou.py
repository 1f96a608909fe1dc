"""The assignment by IoU thresholds of Faster R-CNN and RetinaNet."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from yolof_d2.checks import require

from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult
from .common import match_each_anchor, pairwise_iou


@MATCHER_REGISTRY.register()
class MaxIoUMatcher(Matcher):
    """Labels each anchor by its highest IoU with any ground truth (Faster R-CNN, Ren et al. 2015,
    section 3.1.2; RetinaNet, Lin et al. 2017, section 4).

    From ``pos_iou`` on, an anchor is positive and belongs to the ground truth of that IoU, the
    first of equal ones. Below ``neg_iou`` it is background, in between it is ignored. With
    ``allow_low_quality``, the anchors that overlap a ground truth most are positive at any IoU; as
    in Detectron2, each then belongs to the ground truth that it overlaps most itself, which may be
    another one. Unlike in Detectron2, this needs some overlap: a ground truth that no anchor
    touches makes none positive, where Detectron2 would take all.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        neg_iou: float = 0.4,
        pos_iou: float = 0.5,
        allow_low_quality: bool = True,
    ):
        """
        Args:
            num_classes: K, the label of background.
            neg_iou, pos_iou: 0 < ``neg_iou`` <= ``pos_iou`` <= 1.
            allow_low_quality: whether a ground truth's best anchors are positive at any IoU.

        Raises:
            ConfigError: thresholds out of range or order.
        """
        require(0 < pos_iou <= 1, "MODEL.YOLOF.MATCHER.MAX_IOU.POS_IOU", "lie in (0, 1]", pos_iou)
        require(
            0 < neg_iou <= pos_iou,
            "MODEL.YOLOF.MATCHER.MAX_IOU.NEG_IOU",
            f"lie in (0, POS_IOU], which is (0, {pos_iou}]",
            neg_iou,
        )
        self.num_classes = num_classes
        self.neg_iou = neg_iou
        self.pos_iou = pos_iou
        self.allow_low_quality = allow_low_quality

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.MAX_IOU
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "neg_iou": node.NEG_IOU,
            "pos_iou": node.POS_IOU,
            "allow_low_quality": node.ALLOW_LOW_QUALITY,
        }

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        overlap = pairwise_iou(anchors, ground_truth)  # (N, M, R)
        highest, gt_idx = overlap.max(dim=1)
        positive = highest >= self.pos_iou
        if self.allow_low_quality:
            is_best = (overlap == overlap.amax(dim=2, keepdim=True)) & (overlap > 0)
            positive |= is_best.any(dim=1)
        return match_each_anchor(
            gt_idx, positive, ground_truth, self.num_classes, ignored=highest >= self.neg_iou
        )
