"""Config keys, how they are loaded, and plug-ins."""

from .defaults import add_yolof_config
from .load import build_cfg, iter_keys, num_classes, restore_cfg, set_num_classes
from .plugins import load_plugins

__all__ = [
    "add_yolof_config",
    "build_cfg",
    "iter_keys",
    "load_plugins",
    "num_classes",
    "restore_cfg",
    "set_num_classes",
]
