"""YOLOF's losses: sigmoid focal loss for classes, GIoU for boxes, both per positive anchor."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor

from ..boxes import generalized_iou_loss
from ..matcher import GroundTruth, MatchResult
from ..matcher.build import IGNORED
from .build import LOSS_REGISTRY, DetectionLoss


@LOSS_REGISTRY.register()
class FocalGIoULoss(DetectionLoss):
    """Focal loss over all anchors that are not ignored, GIoU loss over all positive pairs.

    Both are sums, divided by the number of positive anchors, averaged over ranks, at least 1: the
    scale of the loss then does not depend on how objects are spread over GPUs.
    """

    @configurable
    def __init__(self, *, focal_alpha: float = 0.25, focal_gamma: float = 2.0):
        """
        Args:
            focal_alpha, focal_gamma: of the focal loss (Lin et al. 2017, equation 5).
        """
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.YOLOF.LOSS.FOCAL_GIOU
        return {"focal_alpha": node.FOCAL_ALPHA, "focal_gamma": node.FOCAL_GAMMA}

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, match: MatchResult, ground_truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Return ``loss_cls`` and ``loss_box_reg``; see :class:`DetectionLoss`."""
        num_classes = pred_logits.shape[-1]
        labels = match.labels[..., None]
        # Neither background (K) nor ignored (-1) equals a class; masks instead of indexing keep
        # every shape fixed.
        targets = (labels == torch.arange(num_classes, device=labels.device)).to(pred_logits.dtype)
        loss_cls = sigmoid_focal_loss_jit(
            pred_logits, targets, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        loss_cls = loss_cls.masked_fill(labels == IGNORED, 0).sum()

        src = pred_boxes.gather(1, match.pair_anchor_idx[..., None].expand(-1, -1, 4))
        target = ground_truth.boxes.gather(1, match.pair_gt_idx[..., None].expand(-1, -1, 4))
        loss_box = generalized_iou_loss(src, target).masked_fill(~match.pair_mask, 0).sum()

        num_positive = (
            ((match.labels != IGNORED) & (match.labels != num_classes)).sum().to(loss_cls.dtype)
        )
        normalizer = _mean_over_ranks(num_positive).clamp(min=1)
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box / normalizer}


def _mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a scalar over all ranks; a collective: every rank must call it every iteration."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(value)
    return value / comm.get_world_size()
