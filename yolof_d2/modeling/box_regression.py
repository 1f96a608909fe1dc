"""Box arithmetic on tensors of any batch shape; Detectron2's ``Boxes`` holds one image only."""

from __future__ import annotations

import math

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Turn corners into centre and size: float (..., 4) to float (..., 4), pixels."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area of XYXY boxes, float (..., 4) to (...), square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of boxes paired by broadcasting.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels; the leading dimensions broadcast.

    Returns:
        float (...) in [0, 1]. Two boxes without area have IoU 0.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of what boxes, paired by broadcasting, have in common and of what they cover."""
    # Coordinate by coordinate: half the temporary memory of working on (..., 2) corners.
    width = torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(
        boxes1[..., 0], boxes2[..., 0]
    )
    height = torch.minimum(boxes1[..., 3], boxes2[..., 3]) - torch.maximum(
        boxes1[..., 1], boxes2[..., 1]
    )
    intersection = width.clamp_(min=0) * height.clamp_(min=0)
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection


def _hull_size(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around each pair."""
    return (
        torch.maximum(boxes1[..., 2], boxes2[..., 2])
        - torch.minimum(boxes1[..., 0], boxes2[..., 0]),
        torch.maximum(boxes1[..., 3], boxes2[..., 3])
        - torch.minimum(boxes1[..., 1], boxes2[..., 1]),
    )


# Not the losses of torchvision, fvcore or Detectron2: those index with a mask or check values,
# which makes the host wait for the GPU in every iteration. The ones below, and their gradients, are
# finite for boxes without area too.


def iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU: flat, and so without a gradient, where boxes do not meet.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to the area that divides, square pixels.

    Returns:
        float (...) in [0, 1].
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return 1 - intersection / (union + eps)


def generalized_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019): grows with the empty share of the hull.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to areas that divide, square pixels.

    Returns:
        float (...) in [0, 2].
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    width, height = _hull_size(boxes1, boxes2)
    hull = width * height
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


def distance_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - DIoU (Zheng et al., AAAI 2020, equation 7): grows with the distance of the centres.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to what divides, square pixels.

    Returns:
        float (...) in [0, 2].
    """
    return iou_loss(boxes1, boxes2, eps) + _center_distance(boxes1, boxes2, eps)


def complete_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - CIoU (Zheng et al., AAAI 2020, equations 8 to 11): DIoU and the aspect ratios.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: added to what divides, square pixels; also the least width and height, pixels.

    Returns:
        float (...) in [0, 2.5].
    """
    width1, height1 = _sizes(boxes1, eps).unbind(dim=-1)
    width2, height2 = _sizes(boxes2, eps).unbind(dim=-1)
    angle = torch.atan2(width1, height1) - torch.atan2(width2, height2)
    aspect = 4 / math.pi**2 * angle.square()
    overlap = iou_loss(boxes1, boxes2, eps)
    # A trade-off between the terms, not itself something to learn.
    alpha = (aspect / (overlap + aspect + eps)).detach()
    return overlap + _center_distance(boxes1, boxes2, eps) + alpha * aspect


def _center_distance(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, in [0, 1]."""
    width, height = _hull_size(boxes1, boxes2)
    offset = xyxy_to_cxcywh(boxes1)[..., :2] - xyxy_to_cxcywh(boxes2)[..., :2]
    return offset.square().sum(dim=-1) / (width.square() + height.square() + eps)


def delta_l1_loss(anchors: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """L1 distance of the deltas (dx, dy, dw, dh) of two boxes, as seen from the same anchor.

    The deltas are those of Faster R-CNN (Ren et al. 2015, equation 2) without weights. What both
    have from the anchor cancels: what remains is the distance of the centres in widths and heights
    of the anchor, and the difference of the logarithms of the sizes.

    Args:
        anchors, boxes1, boxes2: float (..., 4) XYXY pixels.
        eps: the least width and height, pixels.

    Returns:
        float (...), at least 0.
    """
    center1, center2 = xyxy_to_cxcywh(boxes1)[..., :2], xyxy_to_cxcywh(boxes2)[..., :2]
    shift = (center1 - center2).abs() / _sizes(anchors, eps)
    scale = (_sizes(boxes1, eps).log() - _sizes(boxes2, eps).log()).abs()
    return (shift + scale).sum(dim=-1)


def _sizes(boxes: Tensor, eps: float) -> Tensor:
    """Widths and heights (..., 2), at least ``eps``, so that they can divide or have a logarithm.

    Where ``eps`` holds, no gradient passes.
    """
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=eps)


class CenterClampedBox2BoxTransform(Box2BoxTransform):
    """Detectron2's box transform, with each centre moved by at most ``center_clamp`` pixels.

    YOLOF has one anchor position per cell of a stride-32 map; the clamp keeps a prediction near the
    anchor it belongs to, in matching, training and inference alike (published value: 32 pixels).
    """

    def __init__(self, weights: tuple[float, float, float, float], *, center_clamp: float):
        """
        Args:
            weights: scaling of (dx, dy, dw, dh), as in Detectron2.
            center_clamp: pixels, >= 0.
        """
        super().__init__(weights)
        self.center_clamp = center_clamp

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode ``deltas`` (B, 4) of ``boxes`` (B, 4) XYXY, to float32 (B, 4) XYXY pixels.

        Finite for any finite deltas: Detectron2's transform clamps dw and dh from above.
        """
        # Widths, not pixels, are the unit of dx: clamp there, and leave the decoding itself to
        # Detectron2.
        sizes = boxes[:, 2:] - boxes[:, :2]
        limit = self.center_clamp / sizes * sizes.new_tensor(self.weights[:2])
        centers = torch.minimum(torch.maximum(deltas[:, :2].float(), -limit), limit)
        return super().apply_deltas(torch.cat((centers, deltas[:, 2:].float()), dim=1), boxes)
