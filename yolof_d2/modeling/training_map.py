"""Checks of parts' values against the feature map of training images."""

from __future__ import annotations

import functools
import logging
import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

logger = logging.getLogger(__name__)

PUBLISHED_SIZES = ([[32, 64, 128, 256, 512]], [[16, 32, 64, 128, 256, 512]])
"""Anchor sizes of the published C5 models and of the DC5 models."""


def count_cells(cfg: CfgNode, shape: ShapeSpec) -> tuple[int, int]:
    """Return the cells of a map along the shortest and the longest side of training images.

    The sides are those that ``cfg.INPUT`` allows.
    """
    node = cfg.INPUT
    sides = node.FIXED_SIZE.TRAIN or (min(node.MIN_SIZE_TRAIN), node.MAX_SIZE_TRAIN)
    return math.ceil(min(sides) / shape.stride), math.ceil(max(sides) / shape.stride)


def warn_of_c5_values(
    cfg: CfgNode, shape: ShapeSpec, node: str, **c5_and_dc5: tuple[object, object]
) -> None:
    """Warn of values of the published C5 models (stride 32) on a DC5 map (stride 16).

    Such a model works, and may be the experiment. With anchors unlike those of every published
    model there is no warning.

    Args:
        cfg: the whole config.
        shape: of the map.
        node: full name of the config node.
        c5_and_dc5: the published values of both, by key in that node.
    """
    if shape.stride != 16 or cfg.MODEL.ANCHOR_GENERATOR.SIZES not in PUBLISHED_SIZES:
        return
    values = functools.reduce(CfgNode.__getitem__, node.split("."), cfg)
    left = [
        f"{node}.{key} {dc5} (is {c5})"
        for key, (c5, dc5) in c5_and_dc5.items()
        if values[key] == c5
    ]
    if left:
        logger.warning(
            "The map has stride 16, but these values are those of the published models of "
            "stride 32. The published DC5 models have %s.",
            ", ".join(left),
        )
