"""Where the parts of a detector begin and end, for time, multiply-adds and parameters alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import nn

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.meta_arch.yolof import YOLOF

PARTS = {
    "training": (
        "backbone",
        "encoder",
        "decoder",
        "matching and loss",
        "backward",
        "optimizer",
        "other",
    ),
    "inference": ("backbone", "encoder", "decoder", "post-processing", "other"),
}
"""Parts of a step of each mode, in the order in which they run; ``other`` comes first and last."""

Mark = Callable[[str], None]
"""Called with the name of a part when it has just ended."""


@dataclass(frozen=True)
class Parts:
    """The modules whose calls bound the parts."""

    backbone: nn.Module
    encoder: nn.Module | None  # what ends the encoder; None where nothing follows the backbone
    decoder: nn.Module


def find_parts(model: nn.Module) -> Parts:
    """Tell the parts of a model apart.

    Raises:
        ConfigError: it is neither a YOLOF nor a RetinaNet or FCOS.
    """
    if isinstance(model, YOLOF):
        last, decoder = model.encoder, model.decoder
    elif isinstance(model, (RetinaNet, FCOS)):
        last, decoder = model.backbone, model.head
    else:
        raise ConfigError(
            f"the parts of a {type(model).__name__} cannot be told apart; expected a config whose "
            "MODEL.META_ARCHITECTURE is YOLOF, RetinaNet, RetinaNetPlus or FCOS"
        )
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    return Parts(backbone, None if last is backbone else last, decoder)


@contextmanager
def marked(model: nn.Module, mark: Mark) -> Iterator[None]:
    """Inside, the forward pass of ``model`` calls ``mark`` at the end of each of its parts."""
    parts = find_parts(model)
    behind = {True: "matching and loss", False: "post-processing"}
    hooks = [
        parts.backbone.register_forward_pre_hook(lambda *_: mark("other")),
        parts.backbone.register_forward_hook(lambda *_: mark("backbone")),
        parts.decoder.register_forward_hook(lambda *_: mark("decoder")),
        model.register_forward_hook(lambda module, *_: mark(behind[module.training])),
    ]
    if parts.encoder is not None:
        hooks.append(parts.encoder.register_forward_hook(lambda *_: mark("encoder")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
