"""Adaptive Training Sample Selection (Zhang et al., CVPR 2020), on one feature map."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from yolof_d2.checks import require
from yolof_d2.modeling.box_ops import box_iou, xyxy_to_cxcywh

from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult
from .common import contains, match_highest_score


@MATCHER_REGISTRY.register()
class ATSSMatcher(Matcher):
    """Chooses the positives of each ground truth by a threshold of its own (paper, algorithm 1).

    1. Candidates are the anchors of the ``topk`` cells whose centres are nearest to the centre of
       the ground truth (L2; of equally near cells the first). All anchors of a cell share their
       centre, so that a cell brings all of them: ``topk`` cells are ``topk`` * A candidates.
    2. The threshold is the mean plus the standard deviation of the candidates' IoUs with the ground
       truth: the unbiased one (divided by n - 1), as in the paper's released form; of a single
       candidate it is 0.
    3. Positive are the candidates of an IoU not below the threshold whose centre lies inside the
       ground truth (not on its edge).
    4. An anchor that several ground truths want belongs to the one it overlaps most, the first of
       equal ones; the others may be left with none.

    All other anchors are background, none is ignored. A ground truth that holds no cell centre gets
    no anchor: on one map of a large stride that happens to small objects. The paper has one anchor
    per cell; YOLOF's comparison tries ``topk`` 9 and 15.
    """

    @configurable
    def __init__(self, *, num_classes: int, num_anchors: int, topk: int = 9):
        """
        Args:
            num_classes: K, the label of background.
            num_anchors: A, anchors per cell.
            topk: nearest cells per ground truth; all, when there are fewer.

        Raises:
            ConfigError: ``topk`` below 1.
        """
        require(topk >= 1, "MODEL.YOLOF.MATCHER.ATSS.TOPK", "be 1 or more", topk)
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.topk = topk

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "num_anchors": num_anchors,
            "topk": cfg.MODEL.YOLOF.MATCHER.ATSS.TOPK,
        }

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        gt_boxes = ground_truth.boxes
        cells = anchors.unflatten(0, (-1, self.num_anchors))  # (H * W, A, 4)
        centers = xyxy_to_cxcywh(cells[:, 0])[:, :2]

        offsets = xyxy_to_cxcywh(gt_boxes)[:, :, None, :2] - centers  # (N, M, H * W, 2)
        # A stable sort, not topk, whose choice among equally near cells is not defined.
        nearest = offsets.square().sum(-1).sort(dim=2, stable=True).indices[..., : self.topk]

        overlap = box_iou(cells[nearest], gt_boxes[:, :, None, None]).flatten(2)  # (N, M, k * A)
        std, mean = torch.std_mean(
            overlap, dim=2, keepdim=True, correction=min(1, overlap.shape[2] - 1)
        )
        inside = contains(gt_boxes[:, :, None], centers[nearest])
        wanted = (overlap >= mean + std) & inside.repeat_interleave(self.num_anchors, dim=2)
        wanted &= ground_truth.valid[..., None]

        anchor_idx = nearest[..., None] * self.num_anchors + torch.arange(
            self.num_anchors, device=anchors.device
        )
        scores = overlap.new_full((*gt_boxes.shape[:2], len(anchors)), -math.inf)
        scores.scatter_(2, anchor_idx.flatten(2), overlap.masked_fill(~wanted, -math.inf))
        return match_highest_score(scores, ground_truth, self.num_classes)
