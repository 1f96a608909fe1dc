"""Box arithmetic on tensors of any batch shape; Detectron2's ``Boxes`` holds one image only."""

from __future__ import annotations

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
    # Coordinate by coordinate: half the temporary memory of working on (..., 2) corners.
    width = torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(
        boxes1[..., 0], boxes2[..., 0]
    )
    height = torch.minimum(boxes1[..., 3], boxes2[..., 3]) - torch.maximum(
        boxes1[..., 1], boxes2[..., 1]
    )
    intersection = width.clamp_(min=0) * height.clamp_(min=0)
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of boxes paired one to one.

    The versions of torchvision and fvcore index with a mask, and so make the host wait for the GPU
    in every iteration.

    Args:
        boxes1, boxes2: float (..., 4) XYXY pixels, same shape.
        eps: added to areas that divide, square pixels.

    Returns:
        float (...) in [0, 2].
    """
    inner, outer = torch.minimum(boxes1, boxes2), torch.maximum(boxes1, boxes2)
    overlap = (inner[..., 2:] - outer[..., :2]).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    hull = box_area(torch.cat((inner[..., :2], outer[..., 2:]), dim=-1))
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


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
