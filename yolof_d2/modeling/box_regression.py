"""YOLOF's box transform: deltas of anchors to boxes and back."""

from __future__ import annotations

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


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
