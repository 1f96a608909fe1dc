"""YOLOF's decoder: two towers, and an objectness trained without labels (section 4.3)."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from yolof_d2.modeling.layers import init_conv_normal

from .build import DECODER_REGISTRY
from .plain import PlainDecoder, anchors_last


def fold_objectness(class_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Return logit(sigmoid(class_logits) * sigmoid(object_logits)), exact for any finite input.

    With c and o the two logits, logit(sigmoid(c) * sigmoid(o)) = -log(e^-c + e^-o + e^(-c-o)), a
    log-sum-exp taken in float32: nothing overflows or cancels. The usual form c + o - log(1 + e^c +
    e^o), with e^c and e^o clamped at 1e8 as in public implementations, is wrong above a logit of
    18.4 and overflows in half precision.

    Args:
        class_logits, object_logits: float of shapes that broadcast.

    Returns:
        float32 of the broadcast shape.
    """
    class_logits, object_logits = class_logits.float(), object_logits.float()
    return -torch.logaddexp(F.softplus(-object_logits) - class_logits, -object_logits)


@DECODER_REGISTRY.register()
class ImplicitObjectnessDecoder(PlainDecoder):
    """A classification tower, and a regression tower that also predicts objectness."""

    _node = "IMPLICIT_OBJECTNESS"

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_anchors: int,
        num_classes: int,
        num_shared_convs: int = 0,
        num_cls_convs: int = 2,
        num_reg_convs: int = 4,
        norm: str = "BN",
        activation: str = "ReLU",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape, num_anchors, num_classes, num_shared_convs, num_cls_convs, num_reg_convs,
            norm, activation: see :class:`PlainDecoder`.
            prior_prob: score of each class before training, before objectness is folded in.

        Raises:
            ConfigError: see :class:`PlainDecoder`.
        """
        # Built before the other layers: building draws random numbers too, and in this order a seed
        # gives the weights it always gave.
        object_pred = nn.Conv2d(input_shape.channels, num_anchors, kernel_size=3, padding=1)
        super().__init__(
            input_shape,
            num_anchors=num_anchors,
            num_classes=num_classes,
            num_shared_convs=num_shared_convs,
            num_cls_convs=num_cls_convs,
            num_reg_convs=num_reg_convs,
            norm=norm,
            activation=activation,
            prior_prob=prior_prob,
        )
        self.object_pred = object_pred
        init_conv_normal(self.object_pred)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        classification, regression = self.run_towers(feature)
        class_logits = anchors_last(self.cls_score(classification), self.num_classes)
        object_logits = anchors_last(self.object_pred(regression), 1)
        deltas = anchors_last(self.bbox_pred(regression), 4)
        return fold_objectness(class_logits, object_logits), deltas.float()
