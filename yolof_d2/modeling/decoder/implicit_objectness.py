"""YOLOF's decoder: two towers, and an objectness without a label of its own (section 4.3)."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import conv_norm_act, init_conv_normal
from .build import DECODER_REGISTRY, Decoder


def fold_objectness(class_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Logit of ``sigmoid(class_logits) * sigmoid(object_logits)``, exact for any finite input.

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
class ImplicitObjectnessDecoder(Decoder):
    """A classification tower, and a regression tower that also predicts objectness."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_anchors: int,
        num_classes: int,
        num_cls_convs: int = 2,
        num_reg_convs: int = 4,
        norm: str = "BN",
        activation: str = "ReLU",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape: channels of the encoder's output, kept through both towers.
            num_anchors: anchors per cell (A).
            num_classes: classes without background (K).
            num_cls_convs, num_reg_convs: 3x3 convolutions in the two towers.
            norm, activation: after each of them.
            prior_prob: score of each class before training (focal loss, section 4.1), before
                objectness is folded in.

        Raises:
            ConfigError: an unknown norm or activation.
        """
        super().__init__()
        self.num_classes = num_classes
        channels = input_shape.channels

        def tower(num_convs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(num_convs):
                layers += conv_norm_act(channels, channels, 3, norm=norm, activation=activation)
            return nn.Sequential(*layers)

        self.cls_subnet = tower(num_cls_convs)
        self.bbox_subnet = tower(num_reg_convs)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=3, padding=1)
        self.object_pred = nn.Conv2d(channels, num_anchors, kernel_size=3, padding=1)

        init_conv_normal(self)
        prior_logit = math.log(prior_prob / (1 - prior_prob))
        nn.init.constant_(self.cls_score.get_parameter("bias"), prior_logit)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS
        return {
            "input_shape": input_shape,
            "num_anchors": num_anchors,
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "num_cls_convs": node.NUM_CLS_CONVS,
            "num_reg_convs": node.NUM_REG_CONVS,
            "norm": node.NORM,
            "activation": node.ACTIVATION,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        regression = self.bbox_subnet(feature)
        class_logits = _anchors_last(self.cls_score(self.cls_subnet(feature)), self.num_classes)
        object_logits = _anchors_last(self.object_pred(regression), 1)
        deltas = _anchors_last(self.bbox_pred(regression), 4)
        return fold_objectness(class_logits, object_logits), deltas.float()


def _anchors_last(prediction: Tensor, dim: int) -> Tensor:
    """Reorder (N, A * dim, H, W) to (N, H * W * A, dim), the order of the anchor generator."""
    num_images, _, height, width = prediction.shape
    prediction = prediction.view(num_images, -1, dim, height, width)
    return prediction.permute(0, 3, 4, 1, 2).reshape(num_images, -1, dim)
