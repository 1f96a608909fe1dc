"""Levels in, levels out: the four encoders of YOLOF's Figure 1, and the pyramid of FCOS.

Multiple in, multiple out (MiMo) is FPN, Detectron2's ``build_retinanet_resnet_fpn_backbone``. The
other three stand here. The figure gives the levels, not the layers: these are our reading of it,
with the layers of FPN wherever it has one for the purpose. All four pad images alike and come under
the same head. C3, C4, C5 are the ResNet's res3, res4, res5, of strides 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor
from torch.nn import functional as F

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import build_norm

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class SingleInMultipleOut(Backbone):
    """SiMo: FPN's five levels from C5 alone.

    p5 is FPN's: a 1x1 projection of C5, then a 3x3 convolution. p4 and p3 are FPN's with the
    lateral connections taken out: the projection, enlarged 2 and 4 times by nearest neighbours,
    then a 3x3 convolution of their own. p6 and p7 are RetinaNet's.
    """

    def __init__(self, bottom_up: Backbone, *, out_channels: int, norm: str = ""):
        """
        Args:
            bottom_up: gives ``res5`` of stride 32.
            out_channels: width of each level.
            norm: after each convolution of p3, p4 and p5, as in FPN.

        Raises:
            ConfigError: an unknown norm.
        """
        super().__init__()
        self.bottom_up = bottom_up
        in_channels = bottom_up.output_shape()["res5"].channels
        self.fpn_lateral5 = _conv(in_channels, out_channels, 1, norm)
        self.fpn_output3 = _conv(out_channels, out_channels, 3, norm)
        self.fpn_output4 = _conv(out_channels, out_channels, 3, norm)
        self.fpn_output5 = _conv(out_channels, out_channels, 3, norm)
        self.top_block = LastLevelP6P7(in_channels, out_channels)
        self._out_feature_strides = {f"p{level}": 2**level for level in range(3, 8)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give p3 to p7, float (N, ``out_channels``, h / stride, w / stride), of (N, 3, h, w)."""
        c5 = self.bottom_up(images)["res5"]
        projected = self.fpn_lateral5(c5)
        p6, p7 = self.top_block(c5)
        return {
            "p3": self.fpn_output3(F.interpolate(projected, scale_factor=4.0, mode="nearest")),
            "p4": self.fpn_output4(F.interpolate(projected, scale_factor=2.0, mode="nearest")),
            "p5": self.fpn_output5(projected),
            "p6": p6,
            "p7": p7,
        }


class MultipleInSingleOut(Backbone):
    """MiSo: C3, C4 and C5 fused into p5.

    FPN turned round: from C3 on, the sum so far is halved by a 3x3 convolution of stride 2 and
    added to the 1x1 projection of the next level; a 3x3 convolution of the last sum gives p5.
    """

    def __init__(self, bottom_up: Backbone, *, out_channels: int, norm: str = ""):
        """
        Args:
            bottom_up: gives ``res3``, ``res4`` and ``res5`` of strides 8, 16 and 32.
            out_channels: width of p5, and of the projections.
            norm: after each convolution.

        Raises:
            ConfigError: an unknown norm.
        """
        super().__init__()
        self.bottom_up = bottom_up
        shapes = bottom_up.output_shape()
        self.fpn_lateral3 = _conv(shapes["res3"].channels, out_channels, 1, norm)
        self.fpn_lateral4 = _conv(shapes["res4"].channels, out_channels, 1, norm)
        self.fpn_lateral5 = _conv(shapes["res5"].channels, out_channels, 1, norm)
        self.downsample3 = _conv(out_channels, out_channels, 3, norm, stride=2)
        self.downsample4 = _conv(out_channels, out_channels, 3, norm, stride=2)
        self.fpn_output5 = _conv(out_channels, out_channels, 3, norm)
        self._out_features = ["p5"]
        self._out_feature_strides = {"p5": 32}
        self._out_feature_channels = {"p5": out_channels}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give p5, float (N, ``out_channels``, h / 32, w / 32), of float (N, 3, h, w)."""
        features = self.bottom_up(images)
        fused = self.fpn_lateral3(features["res3"])
        fused = self.fpn_lateral4(features["res4"]) + self.downsample3(fused)
        fused = self.fpn_lateral5(features["res5"]) + self.downsample4(fused)
        return {"p5": self.fpn_output5(fused)}


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1
) -> Conv2d:
    """A convolution as FPN makes them: no bias before a norm, no activation."""
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


def _build_resnet(cfg: CfgNode, input_shape: ShapeSpec, in_features: Sequence[str]) -> Backbone:
    """Build the ResNet, and check that it gives ``in_features``, with their usual strides."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    strides = {name: shape.stride for name, shape in bottom_up.output_shape().items()}
    expected = {name: _STRIDES.get(name) for name in in_features}
    if any(strides.get(name) != stride for name, stride in expected.items()):
        raise ConfigError(
            f"{cfg.MODEL.BACKBONE.NAME} takes in features of strides {expected}, but the ResNet "
            f"gives {strides}; see MODEL.RESNETS.OUT_FEATURES and MODEL.RESNETS.RES5_DILATION"
        )
    return bottom_up


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_simo_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build :class:`SingleInMultipleOut` on a ResNet, from ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Raises:
        ConfigError: the ResNet does not give res5 of stride 32.
    """
    bottom_up = _build_resnet(cfg, input_shape, ["res5"])
    return SingleInMultipleOut(
        bottom_up, out_channels=cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM
    )


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_miso_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build :class:`MultipleInSingleOut` on a ResNet, from ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Raises:
        ConfigError: the ResNet does not give res3, res4 and res5 of strides 8, 16 and 32.
    """
    bottom_up = _build_resnet(cfg, input_shape, ["res3", "res4", "res5"])
    return MultipleInSingleOut(
        bottom_up, out_channels=cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM
    )


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_siso_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build SiSo on a ResNet: p5 from C5 alone, an FPN of this one level.

    Raises:
        ConfigError: the ResNet does not give res5 of stride 32.
    """
    bottom_up = _build_resnet(cfg, input_shape, ["res5"])
    return FPN(bottom_up, ["res5"], cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM)


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build FPN on a ResNet as FCOS has it: p6 and p7 come from p5, where RetinaNet takes C5.

    Raises:
        ConfigError: res5 is not among ``MODEL.FPN.IN_FEATURES``, or the ResNet does not give them
            with strides from 4 (res2) to 32 (res5).
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    if "res5" not in in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}, expected res5 among them: "
            "FCOS makes p6 and p7 from p5"
        )
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        _build_resnet(cfg, input_shape, in_features),
        in_features,
        out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(out_channels, out_channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
