"""The YOLOF meta-architecture, which wires the parts (Chen et al., CVPR 2021)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_anchor_generator,
    detector_postprocess,
)
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.backbone import build_backbone
from yolof_d2.modeling.box_regression import CenterClampedBox2BoxTransform
from yolof_d2.modeling.decoder import Decoder, build_decoder
from yolof_d2.modeling.encoder import Encoder, build_encoder
from yolof_d2.modeling.families import YOLOFFamily
from yolof_d2.modeling.losses import DetectionLoss, build_loss
from yolof_d2.modeling.matcher import GroundTruth, Matcher, build_matcher
from yolof_d2.modeling.postprocess import select_detections
from yolof_d2.modeling.training_map import PUBLISHED_SIZES, warn_of_c5_values


@META_ARCH_REGISTRY.register()
class YOLOF(nn.Module):
    """Detects from a single feature map.

    Shapes: N images, H x W cells, A anchors per cell, R = H * W * A anchors, K classes. Boxes are
    XYXY in pixels of the network's input.
    """

    detector_family = YOLOFFamily()
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        encoder: Encoder,
        decoder: Decoder,
        anchor_generator: nn.Module,
        box_transform: CenterClampedBox2BoxTransform,
        matcher: Matcher,
        loss: DetectionLoss,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.6,
        max_detections: int = 100,
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone: with exactly one output feature.
            encoder, decoder, matcher, loss: see the contract of each slot.
            anchor_generator: Detectron2's, for one feature map.
            box_transform: decodes deltas to boxes.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``.
            score_thresh, topk_candidates, nms_thresh, max_detections: see
                :func:`select_detections`.
            input_format: channel order of the images, for drawing only.
        """
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.anchor_generator = anchor_generator
        self.box_transform = box_transform
        self.matcher = matcher
        self.loss = loss
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.input_format = input_format
        # Saved with the weights, as in the public checkpoints, which therefore load without a
        # missing or extra key.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        _check_anchors(cfg)
        backbone = build_backbone(cfg)
        feature_shapes = list(backbone.output_shape().values())
        if len(feature_shapes) != 1:
            raise ConfigError(
                f"YOLOF reads one feature map, but {cfg.MODEL.BACKBONE.NAME} gives "
                f"{sorted(backbone.output_shape())}. "
                "Name one, such as MODEL.RESNETS.OUT_FEATURES '[\"res5\"]'."
            )
        encoder = build_encoder(cfg, feature_shapes[0])
        shape = encoder.output_shape()
        _check_center_clamp(cfg, shape)
        warn_of_c5_values(cfg, shape, "MODEL.ANCHOR_GENERATOR", SIZES=PUBLISHED_SIZES)
        anchor_generator = build_anchor_generator(cfg, [shape])
        (num_anchors,) = anchor_generator.num_anchors
        node = cfg.MODEL.YOLOF
        return {
            "backbone": backbone,
            "encoder": encoder,
            "decoder": build_decoder(cfg, shape, num_anchors),
            "anchor_generator": anchor_generator,
            "box_transform": CenterClampedBox2BoxTransform(
                tuple(node.BOX_TRANSFORM.WEIGHTS), center_clamp=node.BOX_TRANSFORM.CENTER_CLAMP
            ),
            "matcher": build_matcher(cfg, shape, num_anchors),
            "loss": build_loss(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "score_thresh": node.SCORE_THRESH_TEST,
            "topk_candidates": node.TOPK_CANDIDATES_TEST,
            "nms_thresh": node.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, as any Detectron2 detector.

        Args:
            batched_inputs: one dict per image, from a Detectron2 mapper: ``image``, uint8 or float
                (C, h, w); in training ``instances`` with ``gt_boxes`` and ``gt_classes``;
                ``height`` and ``width`` (pixels) of the wanted output, by default those of
                ``image``.

        Returns:
            In training, the losses by name. Otherwise one ``{"instances": Instances}`` per image.

        Raises:
            ValueError: training without ``instances``.
        """
        images = self.preprocess_image(batched_inputs)
        logits, boxes, anchors = self.predict(images.tensor)
        if not self.training:
            return self.postprocess(logits, boxes, batched_inputs, images.image_sizes)

        if any("instances" not in image for image in batched_inputs):
            raise ValueError(
                "training needs ground truth: each input must have 'instances'; "
                "to detect, call model.eval() first"
            )
        ground_truth = GroundTruth.from_instances(
            [image["instances"] for image in batched_inputs], self.device
        )
        match = self.matcher(anchors, logits.detach(), boxes.detach(), ground_truth)
        return self.loss(anchors, logits, boxes, match, ground_truth)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images, and pad them with zeros to one size."""
        images = [
            (image["image"].to(self.device) - self.pixel_mean) / self.pixel_std
            for image in batched_inputs
        ]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict from normalised ``images``, float (N, C, h, w).

        Returns:
            logits: float32 (N, R, K).
            boxes: float32 (N, R, 4), decoded.
            anchors: float32 (R, 4), of each image.
        """
        (feature,) = self.backbone(images).values()
        feature = self.encoder(feature)
        logits, deltas = self.decoder(feature)
        anchors = self.anchor_generator([feature])[0].tensor
        boxes = self.box_transform.apply_deltas(
            deltas.flatten(0, 1), anchors.repeat(len(deltas), 1)
        )
        return logits, boxes.view_as(deltas), anchors

    def postprocess(
        self,
        logits: Tensor,
        boxes: Tensor,
        batched_inputs: list[dict[str, Any]],
        image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Instances]]:
        """Select the detections of each image, and scale them to its wanted output size."""
        results = []
        for image_logits, image_boxes, image, size in zip(
            logits, boxes, batched_inputs, image_sizes, strict=True
        ):
            detections = select_detections(
                image_logits,
                image_boxes,
                size,
                score_thresh=self.score_thresh,
                topk=self.topk_candidates,
                nms_thresh=self.nms_thresh,
                max_detections=self.max_detections,
            )
            height, width = image.get("height", size[0]), image.get("width", size[1])
            results.append({"instances": detector_postprocess(detections, height, width)})
        return results


def _check_anchors(cfg: CfgNode) -> None:
    """Refuse sizes or ratios for several levels, none at all, or one that is not positive."""
    for name in ("SIZES", "ASPECT_RATIOS"):
        levels = cfg.MODEL.ANCHOR_GENERATOR[name]
        if len(levels) != 1 or not levels[0] or min(levels[0]) <= 0:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{name} is {levels}, but YOLOF has one feature map: "
                "expected one list of positive numbers, such as [[32, 64, 128, 256, 512]]"
            )


def _check_center_clamp(cfg: CfgNode, shape: ShapeSpec) -> None:
    """Refuse a clamp that puts boxes between two anchors out of reach."""
    clamp = cfg.MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP
    if clamp < shape.stride / 2:
        raise ConfigError(
            f"MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP is {clamp} pixels, but with a stride of "
            f"{shape.stride} a centre can be {shape.stride / 2:g} pixels from the nearest anchor; "
            "expected at least that"
        )
