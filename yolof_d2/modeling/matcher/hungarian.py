"""One anchor for each object, at the lowest total cost (DETR, Carion et al., ECCV 2020)."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from yolof_d2.checks import require
from yolof_d2.modeling.box_losses import generalized_iou_loss
from yolof_d2.modeling.box_ops import xyxy_to_cxcywh

from .build import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult
from .common import match_each_anchor

LARGE_COST = 1e6  # in place of what is not finite, which scipy refuses


@MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """Assigns ground truths to predictions one to one, at the lowest total cost (DETR, equation 1).

    The cost of a pair is the sum of, each with its weight:

    - classification: focal loss (alpha 0.25, gamma 2) of the ground truth's class as positive, less
      that as negative, as in Deformable DETR (Zhu et al., ICLR 2021);
    - L1 distance of (centre x, centre y, width, height). DETR divides by the size of the image,
      which a matcher does not know: here by the extent of the feature map in pixels, which is that
      of the anchors' centres plus one stride, and so the size of the padded batch;
    - 1 - GIoU, which ranks as DETR's -GIoU does.

    A cost that is not finite counts as a very large one. All other anchors are background, none is
    ignored; of more ground truths than anchors, the surplus gets none. The assignment runs on the
    host: each call waits for the device.
    """

    not_promised = {"never_waits_for_the_device": "SciPy solves the assignment on the host"}

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        stride: int,
        cls_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ):
        """
        Args:
            num_classes: K, the label of background.
            stride: of the map that the anchors stand on, pixels per cell.
            cls_weight, l1_weight, giou_weight: 0 or more.

        Raises:
            ConfigError: a weight below 0, or not finite.
        """
        node = "MODEL.YOLOF.MATCHER.HUNGARIAN"
        for key, value in (
            ("CLS_WEIGHT", cls_weight),
            ("L1_WEIGHT", l1_weight),
            ("GIOU_WEIGHT", giou_weight),
        ):
            require(0 <= value < math.inf, f"{node}.{key}", "be 0 or more, and finite", value)
        self.num_classes = num_classes
        self.stride = stride
        self.cls_weight = cls_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.MATCHER.HUNGARIAN
        return {
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "stride": input_shape.stride,
            "cls_weight": node.CLS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
        }

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        # Here, because it takes a tenth of the package's import time, on each rank of every model.
        from scipy.optimize import linear_sum_assignment

        centers = xyxy_to_cxcywh(anchors)[:, :2]
        extent = centers.amax(dim=0) - centers.amin(dim=0) + self.stride
        gt_idx = torch.zeros(pred_boxes.shape[:2], dtype=torch.int64)
        positive = torch.zeros(pred_boxes.shape[:2], dtype=torch.bool)
        for n, valid in enumerate(ground_truth.valid):
            cost = self._cost(
                pred_logits[n],
                pred_boxes[n],
                ground_truth.boxes[n, valid],
                ground_truth.classes[n, valid],
                extent.repeat(2),
            )
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
            gt_idx[n, columns] = valid.cpu().nonzero()[rows, 0]
            positive[n, columns] = True
        gt_idx, positive = gt_idx.to(anchors.device), positive.to(anchors.device)
        return match_each_anchor(gt_idx, positive, ground_truth, self.num_classes)

    def _cost(
        self, logits: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_classes: Tensor, extent: Tensor
    ) -> Tensor:
        """Return the cost of each pair of one image.

        Args:
            logits: float32 (R, K).
            boxes: float32 (R, 4) XYXY pixels.
            gt_boxes: float32 (M, 4) XYXY pixels, without padding.
            gt_classes: int64 (M,).
            extent: float32 (4,), width, height, width, height of the map in pixels.

        Returns:
            float32 (M, R), finite.
        """
        logits = logits[:, gt_classes].T
        as_positive, as_negative = (
            sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2)
            for target in (torch.ones_like(logits), torch.zeros_like(logits))
        )
        distance = torch.cdist(
            xyxy_to_cxcywh(gt_boxes) / extent, xyxy_to_cxcywh(boxes) / extent, p=1
        )
        shape = (len(gt_boxes), len(boxes), 4)
        giou_loss = generalized_iou_loss(boxes.expand(shape), gt_boxes[:, None].expand(shape))
        cost = (
            self.cls_weight * (as_positive - as_negative)
            + self.l1_weight * distance
            + self.giou_weight * giou_loss
        )
        return cost.where(cost.isfinite(), LARGE_COST)
