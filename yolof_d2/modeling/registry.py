"""Look up registered parts by name."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry

from yolof_d2.errors import ConfigError


def get_part(registry: Registry, name: str, key: str) -> Any:
    """Return the class registered under ``name``, the value of the config key ``key``.

    Raises:
        ConfigError: nothing is registered under ``name``; the message lists the known names.
    """
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ConfigError(
            f"{key} is {name!r}, but no such part is registered. Known: {known}. "
            "A part of your own must be imported before the model is built."
        )
    return registry.get(name)
