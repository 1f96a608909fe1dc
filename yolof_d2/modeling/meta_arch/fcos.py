"""Detectron2's FCOS for YAML configs; Detectron2 itself offers it to Python configs only."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import fcos
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import build_backbone


class Float32Box2BoxTransformLinear(Box2BoxTransformLinear):
    """Detectron2's transform of FCOS with boxes in float32 whatever the deltas are.

    Detectron2 rounds the boxes to the type of the deltas, under autocast half precision, in which
    coordinates near 1000 are multiples of 0.5 (fp16) or 4 pixels (bf16).
    """

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode float ``deltas`` (N, 4) from the points of ``boxes`` (N, 4) to float32 (N, 4)."""
        return super().apply_deltas(deltas.float(), boxes)


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """FCOS (Tian et al., ICCV 2019) with the improvements of its journal version.

    Same model, weight for weight, as Detectron2's ``COCO-Detection/fcos_R_50_FPN_1x.py`` when the
    backbone is ``build_fcos_resnet_fpn_backbone``.
    """

    @configurable
    def __init__(self, *, input_format: str = "BGR", **arguments: Any):
        """
        Args:
            input_format: channel order of the images, for drawing only.
            arguments: those of Detectron2's ``FCOS``, but for the box transform. The score
                threshold is for the square root of class score times centerness.
        """
        transform = Float32Box2BoxTransformLinear(normalize_by_size=True)
        super().__init__(box2box_transform=transform, **arguments)
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        unknown = [name for name in node.IN_FEATURES if name not in shapes]
        if unknown or not node.IN_FEATURES:
            raise ConfigError(
                f"MODEL.FCOS.IN_FEATURES is {list(node.IN_FEATURES)}, expected some of "
                f"{list(shapes)}, which {cfg.MODEL.BACKBONE.NAME} gives"
            )
        levels = [shapes[name] for name in node.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": fcos.FCOSHead(
                input_shape=levels,
                num_classes=node.NUM_CLASSES,
                conv_dims=[levels[0].channels] * node.NUM_CONVS,
                prior_prob=node.PRIOR_PROB,
                norm=node.NORM,
            ),
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }
