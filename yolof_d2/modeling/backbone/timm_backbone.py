"""Models of the timm package (PyTorch Image Models) as backbones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from yolof_d2.errors import ConfigError


class TimmBackbone(Backbone):
    """A model of timm, its features named ``res<n>`` by their strides of 2^n pixels.

    Of several features of one stride the deepest counts. Layers after the last of ``out_features``
    are not built. The sides of the images must be divisible by the largest stride of
    ``out_features``, to which Detectron2's models pad them.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        pretrained: bool = False,
        out_features: Sequence[str] = ("res5",),
        norm: str = "BN",
        freeze_at: int = 0,
    ):
        """
        Args:
            name: as in ``timm.list_models()``, or with the tag of its weights.
            in_channels: of the images.
            pretrained: download timm's weights. Images must then have the mean, deviation and
                channel order of their training.
            out_features: names of the features to return.
            norm: ``BN`` keeps the model's own norms, of whatever kind; ``FrozenBN`` freezes those
                that are batch norms.
            freeze_at: 0, or n to freeze the model, batch norms included, up to the layer that gives
                ``res<n>``. In ResNets 1 is the stem, 2 also the first stage, as in Detectron2.

        Raises:
            ConfigError: timm is missing, has no such model or cannot build it; the model lacks one
                of the features, or can take images of one size only; another norm.
        """
        super().__init__()
        if norm not in ("BN", "FrozenBN"):
            raise ConfigError(f"MODEL.TIMM.NORM must be 'BN' or 'FrozenBN', got {norm!r}")
        layers = _find_features(name)
        if not out_features or not set(out_features) <= set(layers):
            raise ConfigError(
                f"MODEL.TIMM.OUT_FEATURES is {list(out_features)}; expected one or more of the "
                f"features of {name!r}, which are: {', '.join(layers) or 'none of use here'}"
            )
        self._out_features = list(out_features)
        self._built = [feature for feature in layers if feature in out_features]
        self.body = _create(
            name,
            in_chans=in_channels,
            pretrained=pretrained,
            out_indices=tuple(layers[feature][0] for feature in self._built),
        )
        info = self.body.feature_info
        self._out_feature_channels = dict(zip(self._built, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(self._built, info.reduction(), strict=True))

        if freeze_at:
            modules = [module for module, _ in self.body.model.named_modules() if module]
            _, last = layers.get(f"res{freeze_at}", (0, ""))
            if last not in modules:
                raise ConfigError(
                    f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {name!r} as built has no layer "
                    f"for res{freeze_at}; its features are {', '.join(layers)}; 0 freezes nothing"
                )
            _freeze_until(self.body.model, last)
        if norm == "FrozenBN":
            _import_timm().layers.freeze_batch_norm_2d(self.body)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.TIMM
        return {
            "name": node.NAME,
            "in_channels": input_shape.channels,
            "pretrained": node.PRETRAINED and not cfg.MODEL.WEIGHTS,
            "out_features": node.OUT_FEATURES,
            "norm": node.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map float (N, C, H, W) to ``out_features`` by name, (N, C', H / stride, W / stride)."""
        features = dict(zip(self._built, self.body(images), strict=True))
        return {name: features[name] for name in self._out_features}


def _import_timm() -> Any:
    try:
        import timm.utils
    except ImportError as error:
        raise ConfigError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs the timm package: pip install timm"
        ) from error
    return timm


def _create(name: str, **options: Any) -> Any:
    """Build timm's feature extractor for ``name``, up to the last feature.

    It returns a list of (N, C, H, W), for models that compute (N, H, W, C), such as Swin, too.
    """
    timm = _import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), cutoff=0)
        raise ConfigError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; "
            f"did you mean {', '.join(near)}?"
        )
    try:
        weights = timm.get_pretrained_cfg(name)
        if weights is not None and weights.fixed_input_size:
            options["dynamic_img_size"] = True
        return timm.create_model(name, features_only=True, feature_cls="getter", **options)
    except TypeError as error:  # the model lacks one of the options
        raise ConfigError(
            f"MODEL.TIMM.NAME {name!r} cannot be used: it takes images of one size only, or gives "
            f"no features ({error})"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"MODEL.TIMM.NAME {name!r} cannot be built: {error}") from error


def _find_features(name: str) -> dict[str, tuple[int, str]]:
    """Return index and module name of each feature of a model, by our name for it.

    Left out are strides that are no power of two, and maps with fewer cells than their stride
    implies, as of convolutions without padding: anchors would not lie where the cells look.
    """
    with torch.device("meta"):
        probe = _create(name).eval()
        info = probe.feature_info
        side = 8 * max(info.reduction())
        cells = [feature.shape[-1] for feature in probe(torch.empty(1, 3, side, side))]
    rows = zip(info.reduction(), cells, info.out_indices, info.module_name(), strict=True)
    return {
        f"res{stride.bit_length() - 1}": (index, module)
        for stride, num_cells, index, module in rows
        if stride.bit_count() == 1 and stride * num_cells == side
    }


def _freeze_until(model: nn.Module, last: str) -> None:
    """Freeze the modules of ``model`` up to ``last``, in timm's order, which is that of their use.

    Of modules that contain ``last``, only their own parameters are frozen, such as the embedding of
    positions.
    """
    names = [name for name, _ in model.named_modules()]
    names = names[: names.index(last) + 1]
    for holder in (name for name in names if not name or last.startswith(f"{name}.")):
        for parameter in model.get_submodule(holder).parameters(recurse=False):
            parameter.requires_grad_(False)
    done = [name for name in names if name and not last.startswith(f"{name}.")]
    # Detectron2's own conversion would drop the activation that some of timm's batch norms hold.
    _import_timm().utils.freeze(model, done)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build a model of timm; its weights are not downloaded when ``MODEL.WEIGHTS`` is set."""
    return TimmBackbone(cfg, input_shape)
