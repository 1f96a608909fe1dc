"""CSPDarkNet-53, the backbone of YOLOv4 and of YOLOF's comparison with it (paper, Table 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from yolof_d2.checks import check_at_least
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.layers import build_norm

_NUM_BLOCKS = (1, 2, 8, 8, 4)  # of res1 to res5
_FEATURES = ("stem", "res1", "res2", "res3", "res4", "res5")


def _norm(name: str, num_channels: int) -> nn.Module:
    layer = build_norm(name, num_channels)
    # The options of the public weights' training: PyTorch's defaults give other features.
    for option, value in (("eps", 1e-4), ("momentum", 0.03)):
        if hasattr(layer, option):
            setattr(layer, option, value)
    return layer


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=False
    )
    c2_msra_fill(conv)
    return conv


def _transition(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels, 1), _norm(norm, out_channels), nn.Mish())


class DarkBlock(nn.Module):
    """Residual block of a 1x1 and a 3x3 convolution; nothing after the sum.

    In the public weights, the 1x1 transition before a stage's blocks is part of the first one, as
    ``downsample``.
    """

    def __init__(
        self, channels: int, mid_channels: int, dilation: int, norm: str, downsample: nn.Module
    ):
        super().__init__()
        self.downsample = downsample
        self.conv1 = _conv(channels, mid_channels, 1)
        self.bn1 = _norm(norm, mid_channels)
        self.conv2 = _conv(mid_channels, channels, 3, dilation=dilation)
        self.bn2 = _norm(norm, channels)
        self.activation = nn.Mish()

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.downsample(feature)
        residual = self.activation(self.bn1(self.conv1(feature)))
        return feature + self.activation(self.bn2(self.conv2(residual)))


class CSPStage(nn.Module):
    """Cross-stage partial stage of two branches, one with the residual blocks.

    Each branch begins with a 1x1 transition to ``width`` channels: half of the output's, or all of
    them in the first stage, whose blocks are bottlenecks.
    """

    def __init__(
        self, out_channels: int, width: int, num_blocks: int, stride: int, dilation: int, norm: str
    ):
        super().__init__()
        half = out_channels // 2
        self.base_layer = nn.Sequential(
            _conv(half, out_channels, 3, stride, dilation), _norm(norm, out_channels), nn.Mish()
        )
        self.partial_transition1 = _transition(out_channels, width, norm)
        entry = _transition(out_channels, width, norm)
        downsamples = [entry, *(nn.Identity() for _ in range(num_blocks - 1))]
        blocks = [DarkBlock(width, half, dilation, norm, each) for each in downsamples]
        self.stage_layers = nn.Sequential(*blocks)
        self.partial_transition2 = _transition(width, width, norm)
        self.fuse_transition = _transition(2 * width, out_channels, norm)

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.base_layer(feature)
        deep = self.partial_transition2(self.stage_layers(feature))
        return self.fuse_transition(torch.cat((deep, self.partial_transition1(feature)), dim=1))


class CSPDarkNet(Backbone):
    """CSPDarkNet-53 (Bochkovskiy et al., YOLOv4, 2020; Wang et al., CSPNet, 2020).

    Its features are ``stem``, of stride 1, and ``res1`` to ``res5``, of strides 2 to 32, each twice
    as wide as the last. Images may be of any size: L pixels become ceil(L / stride) cells. Weights
    have the names and shapes of the public YOLOF checkpoints.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem_channels: int = 32,
        out_features: Sequence[str] = ("res5",),
        norm: str = "BN",
        res5_dilation: int = 1,
        freeze_at: int = 0,
    ):
        """
        Args:
            in_channels: of the images.
            stem_channels: width of the stem.
            out_features: names of the features to return; stages after the last are not built.
            norm: Detectron2's name of the norm.
            res5_dilation: 1; or 2 to dilate the 3x3 convolutions of res5, whose stride is then 16.
            freeze_at: parts to freeze: 1 the stem, 2 also res1, and so on. Their batch norms become
                :class:`FrozenBatchNorm2d`.

        Raises:
            ConfigError: a value out of its range, or a norm that cannot take the channels.
        """
        super().__init__()
        check_at_least(1, "MODEL.CSPDARKNET", STEM_OUT_CHANNELS=stem_channels)
        if not out_features or not set(out_features) <= set(_FEATURES):
            raise ConfigError(
                f"MODEL.CSPDARKNET.OUT_FEATURES must name one or more of {', '.join(_FEATURES)}, "
                f"got {list(out_features)}"
            )
        if res5_dilation not in (1, 2):
            raise ConfigError(f"MODEL.CSPDARKNET.RES5_DILATION must be 1 or 2, got {res5_dilation}")

        self.conv1 = _conv(in_channels, stem_channels, 3)
        self.bn1 = _norm(norm, stem_channels)
        self.act1 = nn.Mish()
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": stem_channels}
        self._out_feature_strides = {"stem": 1}
        channels, stride = stem_channels, 1
        self.num_stages = max(_FEATURES.index(name) for name in out_features)
        for number, num_blocks in enumerate(_NUM_BLOCKS[: self.num_stages], start=1):
            dilation = res5_dilation if number == 5 else 1
            width = 2 * channels if number == 1 else channels
            step = 2 // dilation
            stage = CSPStage(2 * channels, width, num_blocks, step, dilation, norm)
            self.add_module(f"layer{number}", stage)
            channels, stride = 2 * channels, step * stride
            self._out_feature_channels[f"res{number}"] = channels
            self._out_feature_strides[f"res{number}"] = stride
        frozen = ["conv1", "bn1"] if freeze_at >= 1 else []
        frozen += [f"layer{number}" for number in range(1, min(freeze_at, self.num_stages + 1))]
        for name in frozen:
            module = getattr(self, name).requires_grad_(False)
            setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(module))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.CSPDARKNET
        return {
            "in_channels": input_shape.channels,
            "stem_channels": node.STEM_OUT_CHANNELS,
            "out_features": node.OUT_FEATURES,
            "norm": node.NORM,
            "res5_dilation": node.RES5_DILATION,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map float (N, C, H, W) to ``out_features`` by name, float (N, C', H', W') each."""
        features = [self.act1(self.bn1(self.conv1(images)))]
        for number in range(1, self.num_stages + 1):
            features.append(getattr(self, f"layer{number}")(features[-1]))
        return {name: features[_FEATURES.index(name)] for name in self._out_features}


@BACKBONE_REGISTRY.register()
def build_cspdarknet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CSPDarkNet:
    """Build CSPDarkNet-53 from ``MODEL.CSPDARKNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return CSPDarkNet(cfg, input_shape)
