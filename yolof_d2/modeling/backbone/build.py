"""Check the config of a backbone, and build it.

Detectron2 raises a bare ``KeyError`` or ``AssertionError`` for a wrong name or value.
"""

from __future__ import annotations

from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from yolof_d2.modeling.registry import get_part

from .resnet_checks import check_resnet_config


def check_backbone(cfg: CfgNode) -> None:
    """Check the name of the backbone and, for Detectron2's ResNets, ``MODEL.RESNETS``.

    Raises:
        ConfigError: no backbone of that name is registered, or a ResNet with these values cannot
            be built.
    """
    get_part(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    if "resnet" in cfg.MODEL.BACKBONE.NAME:  # as in the names of all builders that read the node
        check_resnet_config(cfg)


def build_backbone(cfg: CfgNode) -> Backbone:
    """Build the backbone named by ``cfg.MODEL.BACKBONE.NAME``.

    Raises:
        ConfigError: see :func:`check_backbone`.
    """
    check_backbone(cfg)
    return modeling.build_backbone(cfg)
