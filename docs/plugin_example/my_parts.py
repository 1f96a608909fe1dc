"""Example of parts outside the package: an encoder and a matcher, with their config keys.

Use them with ``PLUGINS "('docs/plugin_example/my_parts.py',)"``; check them with
``python -m yolof_d2.conformance docs/plugin_example/my_parts.py``.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.encoder import ENCODER_REGISTRY, Encoder
from yolof_d2.modeling.matcher import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult


def add_config(cfg: CfgNode) -> None:
    """Add the keys of the parts below; called before config file and command line are read."""
    cfg.MODEL.YOLOF.ENCODER.LARGE_KERNEL = CfgNode(
        {"NUM_CHANNELS": 512, "KERNEL_SIZES": [7, 13, 19], "NORM": "BN"}  # cells, odd; a block each
    )
    cfg.MODEL.YOLOF.MATCHER.CENTER_DISTANCE = CfgNode({"TOPK": 4})  # anchors per object, >= 1


@ENCODER_REGISTRY.register()
class LargeKernelEncoder(Encoder):
    """Cover object scales by large depth-wise kernels, where YOLOF has small dilated ones."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_channels: int, kernel_sizes: list[int], norm: str
    ):
        super().__init__()
        if any(size % 2 == 0 for size in kernel_sizes):
            key = "MODEL.YOLOF.ENCODER.LARGE_KERNEL.KERNEL_SIZES"
            raise ConfigError(f"{key} must be odd, got {list(kernel_sizes)}")
        self._output_shape = ShapeSpec(channels=num_channels, stride=input_shape.stride)
        self.projector = nn.Conv2d(input_shape.channels, num_channels, 1)
        self.blocks = nn.ModuleList()
        for size in kernel_sizes:
            depthwise = nn.Conv2d(
                num_channels, num_channels, size, padding=size // 2, groups=num_channels
            )
            pointwise = nn.Conv2d(num_channels, num_channels, 1)
            normalize = get_norm(norm, num_channels) or nn.Identity()
            self.blocks.append(nn.Sequential(depthwise, normalize, pointwise, nn.ReLU()))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.LARGE_KERNEL
        return {
            "input_shape": input_shape,
            "num_channels": node.NUM_CHANNELS,
            "kernel_sizes": node.KERNEL_SIZES,
            "norm": node.NORM,
        }

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.projector(feature)
        for block in self.blocks:
            feature = feature + block(feature)
        return feature

    def output_shape(self) -> ShapeSpec:
        return self._output_shape


@MATCHER_REGISTRY.register()
class CenterDistanceMatcher(Matcher):
    """Match each object to the ``topk`` anchors nearest in place and size.

    Distance is that of the centres, in object sizes, plus the absolute logarithm of the ratio of
    sizes; size is the square root of the area. Of several objects an anchor goes to the nearest.
    """

    @configurable
    def __init__(self, *, num_classes: int, topk: int):
        if topk < 1:
            key = "MODEL.YOLOF.MATCHER.CENTER_DISTANCE.TOPK"
            raise ConfigError(f"{key} must be 1 or more, got {topk}")
        self.num_classes = num_classes
        self.topk = topk

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, num_anchors: int) -> dict:
        topk = cfg.MODEL.YOLOF.MATCHER.CENTER_DISTANCE.TOPK
        return {"num_classes": cfg.MODEL.YOLOF.NUM_CLASSES, "topk": topk}

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, pred_logits: Tensor, pred_boxes: Tensor, ground_truth: GroundTruth
    ) -> MatchResult:
        distance = _distance(ground_truth.boxes[:, :, None], anchors)  # (N, M, R)
        distance = distance.masked_fill(~ground_truth.valid[..., None], torch.inf)
        nearest = distance.topk(min(self.topk, len(anchors)), dim=2, largest=False)
        num_images, num_gt, k = nearest.indices.shape

        # Masks and infinities in place of indexing by masks: the host never waits for the GPU.
        claims = torch.full_like(distance, torch.inf).scatter(2, nearest.indices, nearest.values)
        claim, owner = claims.min(dim=1)  # (N, R)
        labels = ground_truth.classes.gather(1, owner).masked_fill(claim.isinf(), self.num_classes)

        anchor_idx = nearest.indices.flatten(1)
        gt_idx = torch.arange(num_gt, device=anchors.device).repeat_interleave(k)
        gt_idx = gt_idx.expand(num_images, -1)
        won = (owner.gather(1, anchor_idx) == gt_idx) & ground_truth.valid.gather(1, gt_idx)
        return MatchResult(labels, anchor_idx, gt_idx, won)


def _distance(objects: Tensor, anchors: Tensor) -> Tensor:
    """Return the matcher's distance between XYXY boxes (..., 4), which broadcast."""
    offset = (objects[..., :2] + objects[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    object_size, anchor_size = (
        (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).prod(dim=-1).sqrt()
        for boxes in (objects, anchors)
    )
    return offset.norm(dim=-1) / object_size + (object_size / anchor_size).log().abs()
