"""Detectron2's FCOS for YAML configs; Detectron2 itself offers it to Python configs only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import fcos
from torch import Tensor, nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import build_backbone


class Float32Box2BoxTransformLinear(Box2BoxTransformLinear):
    """Detectron2's transform of FCOS with boxes in float32 whatever the deltas are.

    Detectron2 rounds the boxes to the type of the deltas, under autocast half precision, in which
    coordinates near 1000 are multiples of 0.5 (fp16) or 4 pixels (bf16).
    """

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Give float32 boxes (N, 4) of float ``deltas`` (N, 4) from points of ``boxes`` (N, 4)."""
        return super().apply_deltas(deltas.float(), boxes)


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """FCOS (Tian et al., ICCV 2019) with the improvements of its journal version.

    Same model, weight for weight, as Detectron2's ``COCO-Detection/fcos_R_50_FPN_1x.py`` when the
    backbone is ``build_fcos_resnet_fpn_backbone``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        num_classes: int,
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.2,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ):
        """
        Args:
            center_sampling_radius: in strides of a level; cells nearer to a box's centre may be
                positive.
            test_score_thresh: for the square root of class score times centerness.
            input_format: channel order of the images, for drawing only.
            backbone, and all others: see Detectron2's ``FCOS``.
        """
        super().__init__(
            backbone=backbone,
            head=head,
            head_in_features=head_in_features,
            box2box_transform=Float32Box2BoxTransformLinear(normalize_by_size=True),
            num_classes=num_classes,
            center_sampling_radius=center_sampling_radius,
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
            test_score_thresh=test_score_thresh,
            test_topk_candidates=test_topk_candidates,
            test_nms_thresh=test_nms_thresh,
            max_detections_per_image=max_detections_per_image,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
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
