"""Config keys, how they are loaded, and plug-ins."""

from .defaults import add_yolof_config
from .load import (
    build_cfg,
    iter_keys,
    nearest_key,
    num_classes,
    restore_cfg,
    set_num_classes,
    validate_config,
)
from .plugins import load_plugins

__all__ = [
    "add_yolof_config",
    "build_cfg",
    "iter_keys",
    "load_plugins",
    "nearest_key",
    "num_classes",
    "restore_cfg",
    "set_num_classes",
    "validate_config",
]
