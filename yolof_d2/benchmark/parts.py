"""The parts of a step in time, and marks between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from yolof_d2.modeling.families import family_of_model

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


@contextmanager
def marked(model: nn.Module, mark: Mark) -> Iterator[None]:
    """Inside, the forward pass of ``model`` calls ``mark`` at the end of each of its parts.

    Raises:
        ConfigError: the model's family does not tell its parts apart.
    """
    parts = family_of_model(model).find_parts(model)
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
