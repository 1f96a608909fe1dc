"""Small building blocks shared by encoders and decoders."""

from __future__ import annotations

from detectron2.layers import get_norm
from torch import nn

from yolof_d2.errors import ConfigError

_NORMS = ("BN", "SyncBN", "nnSyncBN", "FrozenBN", "GN", "LN", "")
_ACTIVATIONS = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": lambda: nn.LeakyReLU(0.1, inplace=True),
}


def build_norm(name: str, num_channels: int) -> nn.Module:
    """Build a normalisation layer by Detectron2's name for it; ``""`` gives an identity.

    Raises:
        ConfigError: the name is unknown, or the layer refuses ``num_channels``.
    """
    if name not in _NORMS:
        raise ConfigError(f"unknown NORM {name!r}; expected one of {', '.join(map(repr, _NORMS))}")
    try:
        return get_norm(name, num_channels) or nn.Identity()
    except ValueError as error:  # GroupNorm with channels that its groups do not divide
        raise ConfigError(f"NORM {name!r} cannot take {num_channels} channels: {error}") from error


def build_activation(name: str) -> nn.Module:
    """Build an activation by name: ``ReLU``, or ``LeakyReLU`` with slope 0.1 (Darknet's).

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(f"unknown ACTIVATION {name!r}; expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    norm: str,
    activation: str,
    dilation: int = 1,
) -> list[nn.Module]:
    """Build a convolution that keeps height and width, a norm and an activation.

    The convolution has a bias even before a norm, as in the public YOLOF, so that public weights
    load. "No norm" is an identity, so that the names in the state dict do not depend on the norm.
    """
    padding = dilation * (kernel_size // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation),
        build_norm(norm, out_channels),
        build_activation(activation),
    ]


def init_conv_normal(module: nn.Module, std: float = 0.01) -> None:
    """Draw all convolution weights in ``module`` from normal(0, ``std``); biases become zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
