"""The matcher slot: inputs, outputs, contract, registry and builder.

Shapes: N images, R anchors of one image, M = the most ground-truth boxes of any image of the batch
(at least 1), P = pairs per image, K classes. All shapes are fixed, with masks for padding: no step
has to wait for the device to learn a count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

from yolof_d2.modeling.registry import get_part

MATCHER_REGISTRY = Registry("YOLOF_MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers: decide which anchors answer for which ground-truth boxes. Called as
``obj(cfg, input_shape, num_anchors)`` with the :class:`ShapeSpec` of the map that the anchors stand
on and the number of anchors per cell; must return a :class:`Matcher`.
"""

IGNORED = -1  # label of an anchor that takes no part in the classification loss


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of a batch, padded to one size.

    Attributes:
        boxes: float32 (N, M, 4) XYXY pixels of the network's input; zeros where padded.
        classes: int64 (N, M) in [0, K); zeros where padded.
        valid: bool (N, M), False where padded.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> GroundTruth:
        """Pad ``gt_boxes`` and ``gt_classes`` to the longest; images may have none."""
        shape = (len(instances), max(1, *(len(image) for image in instances)))
        boxes, classes = (
            torch.zeros(*shape, 4, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )
        for i, image in enumerate(instances):
            boxes[i, : len(image)] = image.gt_boxes.tensor.to(device)
            classes[i, : len(image)] = image.gt_classes.to(device)
        counts = torch.tensor([len(image) for image in instances]).to(device)
        valid = torch.arange(shape[1], device=device) < counts[:, None]
        return cls(boxes, classes, valid)


@dataclass(frozen=True)
class MatchResult:
    """Labels of the anchors, and pairs of anchors and ground truths.

    Attributes:
        labels: int64 (N, R): class of a positive anchor, K for background, -1 for ignored.
        pair_anchor_idx: int64 (N, P), anchor of each positive pair. An anchor may be in several
            pairs.
        pair_gt_idx: int64 (N, P), ground truth of the pair, an index into ``GroundTruth.boxes``.
        pair_mask: bool (N, P), True for the pairs that count in the box loss.
    """

    labels: Tensor
    pair_anchor_idx: Tensor
    pair_gt_idx: Tensor
    pair_mask: Tensor


class Matcher(ABC):
    """Assigns ground truth to anchors. Runs without gradients, on the device of its inputs."""

    @abstractmethod
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        """Match a batch.

        Args:
            anchors: float32 (R, 4) XYXY pixels, the same for every image, in the anchor generator's
                order (H, W, A).
            pred_logits: float32 (N, R, K).
            pred_boxes: float32 (N, R, 4) XYXY pixels.
            ground_truth: padded boxes and classes.
        """


def build_matcher(cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> Matcher:
    """Build the matcher named by ``cfg.MODEL.YOLOF.MATCHER.NAME``.

    Raises:
        ConfigError: no matcher of that name is registered.
    """
    matcher = get_part(MATCHER_REGISTRY, cfg.MODEL.YOLOF.MATCHER.NAME, "MODEL.YOLOF.MATCHER.NAME")
    return matcher(cfg, input_shape, num_anchors)
