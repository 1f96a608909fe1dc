"""A decoder of two towers, one for classes and one for boxes (Lin et al. 2017, section 4)."""

from __future__ import annotations

import math

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from yolof_d2.checks import check_at_least
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import conv_norm_act, init_conv_normal

from .build import DECODER_REGISTRY, Decoder


@DECODER_REGISTRY.register()
class PlainDecoder(Decoder):
    """A classification tower and a regression tower, which may share their first convolutions.

    YOLOF's decoder without objectness, and the baseline for it.
    """

    _node = "PLAIN"  # under MODEL.YOLOF.DECODER

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
            input_shape: channels of the encoder's output, kept through all towers.
            num_anchors: anchors per cell (A).
            num_classes: classes without background (K).
            num_shared_convs: 3x3 convolutions before the two towers.
            num_cls_convs, num_reg_convs: 3x3 convolutions in the two towers.
            norm, activation: after each of them.
            prior_prob: score of each class before training (focal loss, section 4.1), in (0, 1).

        Raises:
            ConfigError: a negative number of convolutions, ``prior_prob`` outside (0, 1), or an
                unknown norm or activation.
        """
        super().__init__()
        node = f"MODEL.YOLOF.DECODER.{self._node}"
        check_at_least(
            0,
            node,
            NUM_SHARED_CONVS=num_shared_convs,
            NUM_CLS_CONVS=num_cls_convs,
            NUM_REG_CONVS=num_reg_convs,
        )
        if not 0 < prior_prob < 1:
            raise ConfigError(f"{node}.PRIOR_PROB must lie in (0, 1), got {prior_prob}")
        self.num_classes = num_classes
        channels = input_shape.channels

        def tower(num_convs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(num_convs):
                layers += conv_norm_act(channels, channels, 3, norm=norm, activation=activation)
            return nn.Sequential(*layers)

        self.shared_subnet = tower(num_shared_convs)
        self.cls_subnet = tower(num_cls_convs)
        self.bbox_subnet = tower(num_reg_convs)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=3, padding=1)

        init_conv_normal(self)
        prior_logit = math.log(prior_prob / (1 - prior_prob))
        nn.init.constant_(self.cls_score.get_parameter("bias"), prior_logit)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        node = cfg.MODEL.YOLOF.DECODER[cls._node]
        return {
            "input_shape": input_shape,
            "num_anchors": num_anchors,
            "num_classes": cfg.MODEL.YOLOF.NUM_CLASSES,
            "num_shared_convs": node.NUM_SHARED_CONVS,
            "num_cls_convs": node.NUM_CLS_CONVS,
            "num_reg_convs": node.NUM_REG_CONVS,
            "norm": node.NORM,
            "activation": node.ACTIVATION,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        classification, regression = self.run_towers(feature)
        logits = anchors_last(self.cls_score(classification), self.num_classes)
        deltas = anchors_last(self.bbox_pred(regression), 4)
        return logits.float(), deltas.float()

    def run_towers(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features for classes and for boxes, each float (N, C, H, W)."""
        shared = self.shared_subnet(feature)
        return self.cls_subnet(shared), self.bbox_subnet(shared)


def anchors_last(prediction: Tensor, dim: int) -> Tensor:
    """Reorder (N, A * dim, H, W) to (N, H * W * A, dim), the order of the anchor generator."""
    num_images, _, height, width = prediction.shape
    prediction = prediction.view(num_images, -1, dim, height, width)
    return prediction.permute(0, 3, 4, 1, 2).reshape(num_images, -1, dim)
