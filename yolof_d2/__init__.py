"""YOLOF on Detectron2, made for ablations.

Importing this package registers YOLOF and its parts with Detectron2's registries. It changes no
default of Detectron2 and no other model.
"""

from __future__ import annotations

from . import modeling  # noqa: F401  registers the meta-architecture and its parts
from .config import add_yolof_config

__version__ = "0.1.0"
__all__ = ["add_yolof_config"]
