"""Base of the matchers that take the first anchors of a ranking and ignore unclear ones."""

from __future__ import annotations

from abc import abstractmethod

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from yolof_d2.checks import require
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.box_ops import box_iou
from yolof_d2.modeling.training_map import count_cells

from .build import IGNORED, GroundTruth, Matcher, MatchResult
from .common import pairwise_iou


class RankingMatcher(Matcher):
    """Pairs every ground truth with the first ``topk`` anchors of one ranking or more.

    Two exceptions: a pair whose anchor overlaps its ground truth by less than ``pos_ignore_iou`` is
    dropped; and an anchor in no pair is ignored, not background, when its prediction overlaps some
    ground truth by more than ``neg_ignore_iou``.

    The box loss counts every pair, and a pair that two rankings name twice. For the classification
    loss an anchor needs one label: order the pairs by rank (first to last), then ranking, then
    ground truth; the last pair that names the anchor decides, and if that one was dropped, the
    anchor is ignored. Both rules are those of YOLOF's public implementation, which has the second
    from the order of assignments and so only on a CPU; here it holds on every device.
    """

    def __init__(
        self,
        node: str,
        *,
        num_classes: int,
        topk: int,
        pos_ignore_iou: float,
        neg_ignore_iou: float,
    ):
        """
        Args:
            node: name of the config node under ``MODEL.YOLOF.MATCHER``, for messages.
            num_classes: K, the label of background.
            topk: anchors per ranking and ground truth; all, when there are fewer.
            pos_ignore_iou, neg_ignore_iou: in [0, 1].

        Raises:
            ConfigError: ``topk`` below 1, or a threshold outside [0, 1].
        """
        node = f"MODEL.YOLOF.MATCHER.{node}"
        require(topk >= 1, f"{node}.TOPK", "be 1 or more", topk)
        for key, value in (("POS_IGNORE_IOU", pos_ignore_iou), ("NEG_IGNORE_IOU", neg_ignore_iou)):
            require(0 <= value <= 1, f"{node}.{key}", "lie in [0, 1]", value)
        self.num_classes = num_classes
        self.topk = topk
        self.pos_ignore_iou = pos_ignore_iou
        self.neg_ignore_iou = neg_ignore_iou

    @abstractmethod
    def rank(
        self, anchors: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> tuple[Tensor, Tensor]:
        """Rank the anchors of each ground truth; arguments as in :meth:`Matcher.__call__`.

        Returns:
            anchor_idx: int64 (N, k, L, M), k = min(``topk``, R), of L rankings.
            exists: bool that broadcasts to (N, k, L, M), False for pairs to be left out entirely,
                among them those of padding.
        """

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        anchor_idx, exists = self.rank(anchors, pred_boxes, ground_truth)
        num_gt = anchor_idx.shape[3]
        gt_idx = torch.arange(num_gt, device=anchors.device).expand_as(anchor_idx).flatten(1)
        exists = exists.expand_as(anchor_idx).flatten(1)
        anchor_idx = anchor_idx.flatten(1)

        overlap = box_iou(
            anchors[anchor_idx], ground_truth.boxes.gather(1, gt_idx[..., None].expand(-1, -1, 4))
        )
        positive = exists & (overlap >= self.pos_ignore_iou)
        pair_labels = ground_truth.classes.gather(1, gt_idx).masked_fill_(~positive, IGNORED)

        # The last pair of each anchor, as a maximum over positions: well defined however the device
        # orders its writes.
        position = torch.arange(1, anchor_idx.shape[1] + 1, device=anchors.device).expand_as(
            anchor_idx
        )
        last_pair = position.new_zeros(pred_boxes.shape[:2])  # 0: in no pair
        last_pair = last_pair.scatter_reduce(
            1, anchor_idx, position.masked_fill(~exists, 0), "amax"
        )

        labels = torch.full_like(last_pair, self.num_classes)
        labels = labels.masked_fill_(
            pairwise_iou(pred_boxes, ground_truth).amax(dim=1) > self.neg_ignore_iou, IGNORED
        )
        labels = torch.where(
            last_pair > 0, pair_labels.gather(1, (last_pair - 1).clamp(min=0)), labels
        )
        return MatchResult(labels, anchor_idx, gt_idx, positive)


def check_topk(cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int, node: str) -> None:
    """Check that every training image has ``topk`` anchors.

    Args:
        cfg: the whole config.
        input_shape: of the map that the anchors stand on.
        num_anchors: per cell.
        node: name of the config node with ``TOPK``, under ``MODEL.YOLOF.MATCHER``.

    Raises:
        ConfigError: the smallest image has fewer.
    """
    shortest, _ = count_cells(cfg, input_shape)
    topk, found = cfg.MODEL.YOLOF.MATCHER[node].TOPK, shortest**2 * num_anchors
    if topk > found:
        raise ConfigError(
            f"MODEL.YOLOF.MATCHER.{node}.TOPK is {topk}, but the smallest training image "
            f"(INPUT.MIN_SIZE_TRAIN) has {found} anchors in all"
        )
