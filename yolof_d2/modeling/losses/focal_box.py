"""YOLOF's losses: sigmoid focal loss for classes, an IoU or L1 loss for boxes."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor

from yolof_d2.checks import require
from yolof_d2.modeling.box_losses import (
    complete_iou_loss,
    delta_l1_loss,
    distance_iou_loss,
    generalized_iou_loss,
    iou_loss,
)
from yolof_d2.modeling.matcher import GroundTruth, MatchResult
from yolof_d2.modeling.matcher.build import IGNORED

from .build import LOSS_REGISTRY, DetectionLoss

_IOU_LOSSES = {
    "giou": generalized_iou_loss,
    "iou": iou_loss,
    "diou": distance_iou_loss,
    "ciou": complete_iou_loss,
}
_BOX_LOSSES = (*_IOU_LOSSES, "l1")


@LOSS_REGISTRY.register()
class FocalBoxLoss(DetectionLoss):
    """Focal loss over all anchors that are not ignored, box loss over all positive pairs.

    Both are sums, divided by the number of positive anchors, averaged over ranks, at least 1: the
    scale of the loss then does not depend on how objects are spread over GPUs.
    """

    @configurable
    def __init__(
        self,
        *,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        bbox_reg_loss_type: str = "giou",
        cls_loss_weight: float = 1.0,
        bbox_reg_loss_weight: float = 1.0,
    ):
        """
        Args:
            focal_alpha, focal_gamma: of the focal loss (Lin et al. 2017, equation 5).
            bbox_reg_loss_type: "giou", "iou", "diou", "ciou", or "l1" for the L1 loss of the
                deltas, which are taken from the decoded boxes: where decoding clamped, no gradient
                passes, and ``MODEL.YOLOF.BOX_TRANSFORM.WEIGHTS`` play no part.
            cls_loss_weight, bbox_reg_loss_weight: factors of the two losses, >= 0.

        Raises:
            ConfigError: an unknown ``bbox_reg_loss_type``, or a negative weight.
        """
        node = "MODEL.YOLOF.LOSS.FOCAL_BOX"
        known = bbox_reg_loss_type in _BOX_LOSSES
        expected = f"be one of {', '.join(map(repr, _BOX_LOSSES))}"
        require(known, f"{node}.BBOX_REG_LOSS_TYPE", expected, bbox_reg_loss_type)
        weights = {"CLS_LOSS_WEIGHT": cls_loss_weight, "BBOX_REG_LOSS_WEIGHT": bbox_reg_loss_weight}
        for key, weight in weights.items():
            require(weight >= 0, f"{node}.{key}", "be 0 or more", weight)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.bbox_reg_loss_type = bbox_reg_loss_type
        self.cls_loss_weight = cls_loss_weight
        self.bbox_reg_loss_weight = bbox_reg_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.YOLOF.LOSS.FOCAL_BOX
        return {
            "focal_alpha": node.FOCAL_ALPHA,
            "focal_gamma": node.FOCAL_GAMMA,
            "bbox_reg_loss_type": node.BBOX_REG_LOSS_TYPE,
            "cls_loss_weight": node.CLS_LOSS_WEIGHT,
            "bbox_reg_loss_weight": node.BBOX_REG_LOSS_WEIGHT,
        }

    def __call__(
        self,
        anchors: Tensor,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        match: MatchResult,
        ground_truth: GroundTruth,
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
        if self.bbox_reg_loss_type == "l1":
            loss_box = delta_l1_loss(anchors[match.pair_anchor_idx], src, target)
        else:
            loss_box = _IOU_LOSSES[self.bbox_reg_loss_type](src, target)
        loss_box = loss_box.masked_fill(~match.pair_mask, 0).sum()

        num_positive = (
            ((match.labels != IGNORED) & (match.labels != num_classes)).sum().to(loss_cls.dtype)
        )
        normalizer = _mean_over_ranks(num_positive).clamp(min=1)
        return {
            "loss_cls": self.cls_loss_weight * loss_cls / normalizer,
            "loss_box_reg": self.bbox_reg_loss_weight * loss_box / normalizer,
        }


def _mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a scalar over all ranks; every rank must call it every iteration."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(value)
    return value / comm.get_world_size()
