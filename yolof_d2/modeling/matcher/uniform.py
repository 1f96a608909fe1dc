"""YOLOF's Uniform Matching: the same number of positives for every object (paper, section 4.2)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import ConfigError
from ..boxes import box_iou, xyxy_to_cxcywh
from .build import IGNORED, MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult


@MATCHER_REGISTRY.register()
class UniformMatcher(Matcher):
    """Pairs every ground truth with its ``topk`` nearest predictions and ``topk`` nearest anchors.

    Nearest is the smallest L1 distance of (centre x, centre y, width, height) in pixels; which of
    equally near anchors are taken is up to ``torch.topk``. The author's code takes predictions and
    anchors (37.7 AP), the paper's text anchors only (37.1 AP).

    Two exceptions: a pair whose anchor overlaps its ground truth by less than ``pos_ignore_iou`` is
    dropped; and an anchor in no pair is ignored, not background, when its prediction overlaps some
    ground truth by more than ``neg_ignore_iou``.

    The box loss counts every pair, and a pair that both lists name twice. For the classification
    loss an anchor needs one label: order the pairs by rank (nearest first), then list (predictions,
    anchors), then ground truth; the last pair that names the anchor decides, and if that one was
    dropped, the anchor is ignored. Both rules are those of the public implementation, which has the
    second from the order of assignments and so only on a CPU; here it holds on every device.
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
            topk: nearest predictions, and nearest anchors, per ground truth; fewer when there are
                fewer anchors.
            pos_ignore_iou, neg_ignore_iou: in [0, 1].

        Raises:
            ConfigError: ``topk`` below 1, or a threshold outside [0, 1].
        """
        if topk < 1:
            raise ConfigError(f"MODEL.YOLOF.MATCHER.UNIFORM.TOPK must be 1 or more, got {topk}")
        for key, value in (("POS_IGNORE_IOU", pos_ignore_iou), ("NEG_IGNORE_IOU", neg_ignore_iou)):
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"MODEL.YOLOF.MATCHER.UNIFORM.{key} must lie in [0, 1], got {value}"
                )
        self.num_classes = num_classes
        self.topk = topk
        self.pos_ignore_iou = pos_ignore_iou
        self.neg_ignore_iou = neg_ignore_iou

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.UNIFORM
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "topk": node.TOPK,
            "pos_ignore_iou": node.POS_IGNORE_IOU,
            "neg_ignore_iou": node.NEG_IGNORE_IOU,
        }

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        gt_boxes = ground_truth.boxes
        num_images, num_gt = ground_truth.valid.shape

        # (N, k, 2, M): rank, then list, then ground truth.
        nearest = [
            self._nearest(gt_boxes, boxes) for boxes in (pred_boxes, anchors.expand_as(pred_boxes))
        ]
        anchor_idx = torch.stack(nearest, dim=2).flatten(1)
        gt_idx = torch.arange(num_gt, device=anchors.device).repeat(
            num_images, anchor_idx.shape[1] // num_gt
        )

        valid = ground_truth.valid.gather(1, gt_idx)
        overlap = box_iou(
            anchors[anchor_idx], gt_boxes.gather(1, gt_idx[..., None].expand(-1, -1, 4))
        )
        positive = valid & (overlap >= self.pos_ignore_iou)
        pair_labels = ground_truth.classes.gather(1, gt_idx).masked_fill_(~positive, IGNORED)

        # The last pair of each anchor, as a maximum over positions: well defined however the device
        # orders its writes.
        position = torch.arange(1, anchor_idx.shape[1] + 1, device=anchors.device).expand_as(
            anchor_idx
        )
        last_pair = position.new_zeros(pred_boxes.shape[:2])  # 0: in no pair
        last_pair = last_pair.scatter_reduce(1, anchor_idx, position.masked_fill(~valid, 0), "amax")

        labels = torch.full_like(last_pair, self.num_classes)
        labels = labels.masked_fill_(
            self._max_overlap(pred_boxes, ground_truth) > self.neg_ignore_iou, IGNORED
        )
        labels = torch.where(
            last_pair > 0, pair_labels.gather(1, (last_pair - 1).clamp(min=0)), labels
        )
        return MatchResult(labels, anchor_idx, gt_idx, positive)

    def _nearest(self, gt_boxes: Tensor, boxes: Tensor) -> Tensor:
        """Indices of the ``topk`` of ``boxes`` (N, R, 4) nearest to each of ``gt_boxes`` (N, M, 4):
        (N, k, M).
        """
        cost = torch.cdist(
            xyxy_to_cxcywh(gt_boxes), xyxy_to_cxcywh(boxes), p=1
        )  # (N, M, R): never across images
        return cost.topk(min(self.topk, boxes.shape[1]), dim=2, largest=False).indices.transpose(
            1, 2
        )

    @staticmethod
    def _max_overlap(pred_boxes: Tensor, ground_truth: GroundTruth) -> Tensor:
        """Highest IoU of each prediction with any ground truth, float32 (N, R); 0 without any."""
        overlap = box_iou(pred_boxes[:, None], ground_truth.boxes[:, :, None])  # (N, M, R)
        return overlap.masked_fill_(~ground_truth.valid[..., None], 0).amax(dim=1)
