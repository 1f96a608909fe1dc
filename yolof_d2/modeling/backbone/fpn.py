"""FPN for SiSo and for FCOS, and the layers that it shares with SiMo and MiSo.

Figure 1 of the YOLOF paper compares four encoders by their input and output levels. Multiple in,
multiple out (MiMo) is FPN, Detectron2's ``build_retinanet_resnet_fpn_backbone``; SiMo and MiSo have
a file each. The figure gives the levels, not the layers: ours are those of FPN wherever it has one
for the purpose. All four pad images alike and have the same head. C3, C4, C5 are the ResNet's res3,
res4, res5, of strides 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import build_norm

from .resnet_checks import check_resnet_config

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def fpn_conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1
) -> Conv2d:
    """Build a convolution of FPN: no bias before a norm, no activation."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=build_norm(norm, out_channels),
    )
    c2_xavier_fill(conv)
    return conv


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec, in_features: Sequence[str]) -> Backbone:
    """Build the ResNet below a pyramid.

    Raises:
        ConfigError: it cannot be built, or does not give ``in_features`` with their usual strides.
    """
    check_resnet_config(cfg)
    bottom_up = build_resnet_backbone(cfg, input_shape)
    strides = {name: shape.stride for name, shape in bottom_up.output_shape().items()}
    expected = {name: _STRIDES.get(name) for name in in_features}
    if any(strides.get(name) != stride for name, stride in expected.items()):
        raise ConfigError(
            f"{cfg.MODEL.BACKBONE.NAME} reads features of strides {expected}, but the ResNet "
            f"gives {strides}; see MODEL.RESNETS.OUT_FEATURES and MODEL.RESNETS.RES5_DILATION"
        )
    return bottom_up


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_siso_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build SiSo on a ResNet: an FPN of one level, p5 from C5.

    Raises:
        ConfigError: the ResNet does not give res5 of stride 32.
    """
    bottom_up = build_bottom_up(cfg, input_shape, ["res5"])
    return FPN(bottom_up, ["res5"], cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM)


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build FCOS's FPN on a ResNet: p6 and p7 come from p5, where RetinaNet takes C5.

    Raises:
        ConfigError: res5 is not among ``MODEL.FPN.IN_FEATURES``, or the ResNet does not give them
            with strides from 4 (res2) to 32 (res5).
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    if "res5" not in in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}, expected res5 among them: "
            "FCOS builds p6 and p7 on p5"
        )
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        build_bottom_up(cfg, input_shape, in_features),
        in_features,
        out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(out_channels, out_channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
