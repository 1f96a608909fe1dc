"""Check the backbone's config, and build a detector."""

from __future__ import annotations

from detectron2 import modeling
from detectron2.config import CfgNode
from torch import nn

from yolof_d2.modeling.backbone import check_backbone


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the detector named by ``cfg.MODEL.META_ARCHITECTURE``, as Detectron2 does.

    Detectron2's own detectors do not check their backbone; ours always do.

    Raises:
        ConfigError: the backbone, or another part of ours, cannot be built from its config.
    """
    check_backbone(cfg)
    return modeling.build_model(cfg)
