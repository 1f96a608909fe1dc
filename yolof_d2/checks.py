"""Checks of config values, with one form of message. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from yolof_d2.errors import ConfigError


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Refuse the value of a config key unless ``condition`` holds.

    Raises:
        ConfigError: "KEY must EXPECTED, got GOT".
    """
    if not condition:
        raise ConfigError(f"{key} must {expected}, got {got!r}")


def check_at_least(minimum: int, node: str, **values: int) -> None:
    """Refuse values below ``minimum`` of keys of one config node, such as ``NUM_CHANNELS=0``.

    Raises:
        ConfigError: a value is too small.
    """
    for key, value in values.items():
        require(value >= minimum, f"{node}.{key}", f"be {minimum} or more", value)


def check_size(key: str, size: Sequence[int]) -> tuple[int, int]:
    """Return ``size`` as (height, width) in pixels, if it is two whole numbers above 0."""
    valid = len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    require(valid, key, "be (height, width), two whole numbers above 0", size)
    return size[0], size[1]


def check_range(key: str, bounds: Sequence[float], *, below: float) -> tuple[float, float]:
    """Return ``bounds`` as (low, high), if 0 < low <= high < ``below``."""
    valid = len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds)
    valid = valid and 0 < bounds[0] <= bounds[1] < below
    require(valid, key, f"be two numbers in order, above 0 and below {below}", bounds)
    return bounds[0], bounds[1]
