"""YOLOF on Detectron2, made for ablations.

``add_yolof_config`` adds the config keys, and registers YOLOF and its parts with Detectron2's
registries; so does importing :mod:`yolof_d2.modeling`. No default of Detectron2 and no other model
is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_yolof_config

__version__ = "0.1.0"
__all__ = ["add_yolof_config"]


def __getattr__(name: str) -> Any:
    # Imports torch, for seconds, which planning and reporting sweeps do not need.
    if name == "add_yolof_config":
        from .config import add_yolof_config

        return add_yolof_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
