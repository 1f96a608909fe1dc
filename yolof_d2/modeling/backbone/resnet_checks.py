"""Checks of ``MODEL.RESNETS``, with the config keys in the message; Detectron2 only asserts."""

from __future__ import annotations

from detectron2.config import CfgNode

from yolof_d2.errors import ConfigError

_DEPTHS = (18, 34, 50, 101, 152)
_FEATURES = ("stem", "res2", "res3", "res4", "res5")


def check_resnet_config(cfg: CfgNode) -> None:
    """Check ``MODEL.RESNETS``.

    Raises:
        ConfigError: an unknown depth or feature, another dilation than 1 or 2, or what
            ResNet-18 and -34 do not have: another width, dilation, groups, deformable convolution.
    """
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in _DEPTHS:
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH must be one of {', '.join(map(str, _DEPTHS))}, got {node.DEPTH}"
        )
    if node.RES5_DILATION not in (1, 2):
        raise ConfigError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {node.RES5_DILATION}")
    if not node.OUT_FEATURES or not set(node.OUT_FEATURES) <= set(_FEATURES):
        raise ConfigError(
            f"MODEL.RESNETS.OUT_FEATURES must name one or more of {', '.join(_FEATURES)}, "
            f"got {list(node.OUT_FEATURES)}"
        )
    if node.DEPTH in (18, 34):
        basic = {
            "RES2_OUT_CHANNELS": 64,
            "RES5_DILATION": 1,
            "NUM_GROUPS": 1,
            "DEFORM_ON_PER_STAGE": [False] * 4,
        }
        wrong = [
            f"MODEL.RESNETS.{key} {value} (is {node[key]})"
            for key, value in basic.items()
            if node[key] != value
        ]
        if wrong:
            raise ConfigError(
                f"MODEL.RESNETS.DEPTH {node.DEPTH} has basic blocks, which Detectron2 builds with "
                f"{', '.join(wrong)} only"
            )
