"""Whether the parts of a YOLOF fit together, told when the model is built."""

from __future__ import annotations

import logging
import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from yolof_d2.errors import ConfigError

from .backbone import check_resnet_config
from .registry import get_part

logger = logging.getLogger(__name__)

# What the published models change together when the map's stride goes from 32 (C5) to 16 (DC5).
_SIZES = "MODEL.ANCHOR_GENERATOR.SIZES"
_C5_TO_DC5 = {
    _SIZES: (
        [[32, 64, 128, 256, 512]],
        [[16, 32, 64, 128, 256, 512]],
    ),
    "MODEL.YOLOF.ENCODER.DILATED.DILATIONS": ([2, 4, 6, 8], [4, 8, 12, 16]),
    "MODEL.YOLOF.MATCHER.UNIFORM.TOPK": (4, 8),
    "MODEL.YOLOF.MATCHER.UNIFORM.POS_IGNORE_IOU": (0.15, 0.1),
}


def check_backbone(cfg: CfgNode) -> None:
    """Check the name of the backbone and, for Detectron2's ResNets, their configuration.

    Raises:
        ConfigError: no backbone of that name is registered, or it refuses its configuration.
    """
    get_part(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    check_resnet_config(cfg)


def check_anchors(cfg: CfgNode) -> None:
    """Check that the anchors are made for one feature map.

    Raises:
        ConfigError: sizes or ratios for several levels, none at all, or one that is not positive.
    """
    for name in ("SIZES", "ASPECT_RATIOS"):
        levels = cfg.MODEL.ANCHOR_GENERATOR[name]
        if len(levels) != 1 or not levels[0] or min(levels[0]) <= 0:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{name} is {levels}, but YOLOF has one feature map: "
                "expected one list of positive numbers, such as [[32, 64, 128, 256, 512]]"
            )


def check_fit(cfg: CfgNode, shape: ShapeSpec) -> None:
    """Check anchors, box transform, encoder and matcher against the map they work on.

    What cannot work is an error. What is only unlike every published model is a warning: it may be
    the experiment.

    Args:
        cfg: the whole config.
        shape: of the encoder's output.

    Raises:
        ConfigError: boxes between anchors are out of reach, a dilation is wider than the map, or
            there are fewer anchors than ``k``.
    """
    stride, node = shape.stride, cfg.MODEL.YOLOF
    clamp = node.BOX_TRANSFORM.CENTER_CLAMP
    if clamp < stride / 2:
        raise ConfigError(
            f"MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP is {clamp} pixels, "
            f"but with a stride of {stride} a centre can be {stride / 2:g} pixels from the nearest "
            f"anchor; expected at least that"
        )

    height, width = cfg.INPUT.FIXED_SIZE.TRAIN or (
        min(cfg.INPUT.MIN_SIZE_TRAIN),
        cfg.INPUT.MAX_SIZE_TRAIN,
    )
    longest = math.ceil(max(height, width) / stride)
    uses_dilations = node.ENCODER.NAME == "DilatedEncoder"
    if uses_dilations and max(node.ENCODER.DILATED.DILATIONS, default=0) >= longest:
        raise ConfigError(
            f"MODEL.YOLOF.ENCODER.DILATED.DILATIONS is {node.ENCODER.DILATED.DILATIONS}, but at "
            f"stride {stride} the longest side of a training image has {longest} cells "
            "(INPUT.MAX_SIZE_TRAIN): such a convolution reads nothing but padding beside its centre"
        )

    shortest = math.ceil(min(height, width) / stride)
    num_anchors = shortest**2 * len(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0])
    num_anchors *= len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
    matcher = {"UniformMatcher": "UNIFORM", "TopKIoUMatcher": "TOPK_IOU"}.get(node.MATCHER.NAME)
    topk = node.MATCHER[matcher].TOPK if matcher else 0
    if topk > num_anchors:
        raise ConfigError(
            f"MODEL.YOLOF.MATCHER.{matcher}.TOPK is {topk}, but the smallest training image "
            f"(INPUT.MIN_SIZE_TRAIN) has {num_anchors} anchors in all"
        )

    if stride == 16 and cfg.MODEL.ANCHOR_GENERATOR.SIZES in _C5_TO_DC5[_SIZES]:
        left = [
            f"{key} {dc5} (is {c5})"
            for key, (c5, dc5) in _C5_TO_DC5.items()
            if _is_read(cfg, key) and _get(cfg, key) == c5
        ]
        if left:
            logger.warning(
                "The map has stride 16, but these values are those of the published models of "
                "stride 32. The published DC5 models have %s.",
                ", ".join(left),
            )


def _is_read(cfg: CfgNode, key: str) -> bool:
    """Whether the part that reads ``key`` is the one that is built."""
    node = cfg.MODEL.YOLOF
    if ".DILATED." in key:
        return node.ENCODER.NAME == "DilatedEncoder"
    return ".UNIFORM." not in key or node.MATCHER.NAME == "UniformMatcher"


def _get(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
