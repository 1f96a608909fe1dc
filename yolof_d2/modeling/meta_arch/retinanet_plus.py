"""RetinaNet+, the stronger baseline of the YOLOF paper (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from torch import Tensor, nn

from yolof_d2.modeling.backbone import check_backbone
from yolof_d2.modeling.decoder.implicit_objectness import fold_objectness
from yolof_d2.modeling.layers import init_conv_normal


class ImplicitObjectnessRetinaNetHead(RetinaNetHead):
    """RetinaNet's head whose regression subnet also predicts an objectness, as YOLOF's decoder.

    Shapes: N images, A anchors per cell, K classes, C channels, H x W cells of a level.
    """

    @configurable
    def __init__(self, *, num_anchors: int, conv_dims: Sequence[int], **arguments: Any):
        """Build the head of ``RetinaNetHead``, whose arguments these are, and the objectness.

        ``prior_prob`` is the score of each class before the objectness is folded in.
        """
        super().__init__(num_anchors=num_anchors, conv_dims=conv_dims, **arguments)
        self.num_anchors = num_anchors
        self.object_pred = nn.Conv2d(conv_dims[-1], num_anchors, kernel_size=3, padding=1)
        init_conv_normal(self.object_pred)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict from one float (N, C, H, W) per level.

        Returns:
            logits: per level float32 (N, A * K, H, W), the K classes of an anchor side by side;
                ``sigmoid`` gives class score times objectness.
            deltas: per level float (N, A * 4, H, W).
        """
        logits, deltas = [], []
        for feature in features:
            class_logits = self.cls_score(self.cls_subnet(feature))
            regression = self.bbox_subnet(feature)
            folded = fold_objectness(
                class_logits.unflatten(1, (self.num_anchors, -1)),
                self.object_pred(regression).unsqueeze(2),
            )
            logits.append(folded.flatten(1, 2))
            deltas.append(self.bbox_pred(regression))
        return logits, deltas


@META_ARCH_REGISTRY.register()
class RetinaNetPlus(RetinaNet):
    """Detectron2's RetinaNet with implicit objectness.

    The paper's RetinaNet+ also has group normalisation in the head and the GIoU loss, which are
    RetinaNet's own keys: ``MODEL.RETINANET.NORM`` "GN" and ``BBOX_REG_LOSS_TYPE`` "giou".
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_backbone(cfg)
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        levels = [shapes[name] for name in arguments["head_in_features"]]
        return {**arguments, "head": ImplicitObjectnessRetinaNetHead(cfg, levels)}
