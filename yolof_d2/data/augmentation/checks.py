"""Checks of config values that several augmentations share."""

from __future__ import annotations

from collections.abc import Sequence

from yolof_d2.errors import ConfigError

__all__ = ["check_range", "check_size", "require"]


def require(condition: bool, key: str, expected: str, value: object) -> None:
    """Raise a ConfigError "KEY must EXPECTED, got VALUE" unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} must {expected}, got {value!r}")


def check_size(key: str, size: Sequence[int]) -> tuple[int, int]:
    """``size`` as (height, width) in pixels, if it is two whole numbers above 0."""
    valid = len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    require(valid, key, "be (height, width), two whole numbers above 0", size)
    return size[0], size[1]


def check_range(key: str, bounds: Sequence[float], *, below: float) -> tuple[float, float]:
    """``bounds`` as (low, high), if 0 < low <= high < ``below``."""
    valid = len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds)
    valid = valid and 0 < bounds[0] <= bounds[1] < below
    require(valid, key, f"be two numbers in order, above 0 and below {below}", bounds)
    return bounds[0], bounds[1]
