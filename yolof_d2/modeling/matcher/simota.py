"""SimOTA, a simplified optimal-transport assignment (YOLOX, Ge et al. 2021, section 2)."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.nn import functional as F

from yolof_d2.checks import require
from yolof_d2.modeling.box_ops import xyxy_to_cxcywh

from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult
from .common import contains, match_highest_score, pairwise_iou

OUTSIDE_COST = 1e5  # of YOLOX's released form: beyond any sum of the other terms


@MATCHER_REGISTRY.register()
class SimOTAMatcher(Matcher):
    """Lets the predictions decide how many anchors a ground truth gets, and which.

    1. Candidates of a ground truth are the anchors whose centre lies inside it, or inside the
       square that reaches ``center_radius`` cells from its centre to each side (not on the edge).
    2. The cost of a candidate is ``cls_weight`` times the binary cross-entropy of its class scores,
       summed over all classes, plus ``iou_weight`` times -log(IoU of its prediction, at least
       1e-8), plus 100000 unless its centre lies in the box and in the square: such candidates come
       last. The scores are the sigmoid of the logits; YOLOX's square root of (class score times
       objectness) is left out, as one logit holds both here.
    3. The number of positives k is the sum of the ``candidate_topk`` highest IoUs of the
       candidates' predictions, rounded down, at least 1 (OTA, Ge et al., CVPR 2021, section 3.3,
       "dynamic k estimation"). The k cheapest candidates are wanted, the first of equal ones.
    4. An anchor that several ground truths want belongs to the one it costs least, the first of
       equal ones; the others may be left with less than k, or none.

    All other anchors are background, none is ignored. A ground truth without any candidate gets no
    anchor: with a small ``center_radius``, a box may lie between the centres or beyond them.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        stride: int,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        cls_weight: float = 1.0,
        iou_weight: float = 3.0,
    ):
        """
        Args:
            num_classes: K, the label of background.
            stride: of the map that the anchors stand on, pixels per cell.
            center_radius: cells, 0 or more; at 0 no square.
            candidate_topk: most positives of a ground truth, 1 or more.
            cls_weight, iou_weight: 0 or more.

        Raises:
            ConfigError: a value out of its range.
        """
        node = "MODEL.YOLOF.MATCHER.SIMOTA"
        require(candidate_topk >= 1, f"{node}.CANDIDATE_TOPK", "be 1 or more", candidate_topk)
        for key, value in (
            ("CENTER_RADIUS", center_radius),
            ("CLS_WEIGHT", cls_weight),
            ("IOU_WEIGHT", iou_weight),
        ):
            require(0 <= value < math.inf, f"{node}.{key}", "be 0 or more, and finite", value)
        self.num_classes = num_classes
        self.stride = stride
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.cls_weight = cls_weight
        self.iou_weight = iou_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.SIMOTA
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "stride": input_shape.stride,
            "center_radius": node.CENTER_RADIUS,
            "candidate_topk": node.CANDIDATE_TOPK,
            "cls_weight": node.CLS_WEIGHT,
            "iou_weight": node.IOU_WEIGHT,
        }

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        in_box, in_square = self._locate(anchors, ground_truth)
        candidate = (in_box | in_square) & ground_truth.valid[..., None]
        overlap = pairwise_iou(pred_boxes, ground_truth).masked_fill_(~candidate, 0)

        cost = self.cls_weight * _classification_cost(pred_logits, ground_truth.classes)
        cost -= self.iou_weight * overlap.clamp(min=1e-8).log_()
        # In float64, adding 100000 rounds away nothing. What is not finite becomes very expensive.
        cost = cost.nan_to_num_(nan=torch.finfo(cost.dtype).max).double()
        cost += OUTSIDE_COST * ~(in_box & in_square)
        cost.masked_fill_(~candidate, math.inf)

        most = min(self.candidate_topk, len(anchors))
        num_wanted = overlap.topk(most, dim=2).values.sum(dim=2, keepdim=True).long().clamp_(min=1)
        # A stable sort, not topk, whose choice among equal costs is not defined.
        cheapest, anchor_idx = (ranked[..., :most] for ranked in cost.sort(dim=2, stable=True))
        surplus = torch.arange(most, device=anchors.device) >= num_wanted
        scores = torch.full_like(cost, -math.inf)
        scores.scatter_(2, anchor_idx, -cheapest.masked_fill(surplus, math.inf))
        return match_highest_score(scores, ground_truth, self.num_classes)

    def _locate(self, anchors: Tensor, ground_truth: GroundTruth) -> tuple[Tensor, Tensor]:
        """Return which anchors have their centre in each box, and which in its centre square.

        Both are bool (N, M, R).
        """
        centers = xyxy_to_cxcywh(anchors)[:, :2]
        gt_centers = xyxy_to_cxcywh(ground_truth.boxes)[..., :2]
        reach = self.center_radius * self.stride
        squares = torch.cat((gt_centers - reach, gt_centers + reach), dim=-1)
        return (
            contains(ground_truth.boxes[:, :, None], centers),
            contains(squares[:, :, None], centers),
        )


def _classification_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the binary cross-entropy of each anchor for each ground truth's class.

    It is summed over all classes.

    Args:
        logits: float32 (N, R, K).
        classes: int64 (N, M).

    Returns:
        float32 (N, M, R).
    """
    # The term of class c is softplus(x_c) - [c is the class] * x_c: the sum does not depend on the
    # ground truth.
    of_class = logits.gather(2, classes[:, None].expand(-1, logits.shape[1], -1))
    return F.softplus(logits).sum(dim=2)[:, None] - of_class.transpose(1, 2)
