"""What every check says its findings with."""

from __future__ import annotations

import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor


class ConformanceError(AssertionError):
    """A part breaks its slot's contract; the message says what was got and what is wanted."""


def expect(kept: bool | Tensor, sentence: str) -> None:
    """Raise :class:`ConformanceError` with ``sentence`` unless ``kept``."""
    if not kept:
        raise ConformanceError(sentence)


def expect_finite(outputs: Mapping[str, Tensor], when: str) -> None:
    """Raise unless all values of ``outputs`` are finite; ``when`` says in which situation."""
    for name, value in outputs.items():
        count = int((~value.isfinite()).sum())
        expect(
            count == 0, f"{name} has {count} values that are infinite or NaN {when}; wanted none"
        )


def expect_same(
    got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], sentence: str, tolerance: float = 0.0
) -> None:
    """Raise unless both hold the same values.

    Args:
        got, wanted: outputs by name.
        sentence: what it means that they differ.
        tolerance: allowed difference, relative to the largest value of each output.
    """
    for name, value in wanted.items():
        other = got[name]
        expect(
            other.shape == value.shape,
            f"{sentence}: {name} has shape {list(other.shape)} in place of {list(value.shape)}",
        )
        # A negated comparison, so that NaN counts as a difference.
        difference = float((other.double() - value.double()).abs().max()) if value.numel() else 0.0
        allowed = tolerance * float(value.abs().max()) if value.numel() else 0.0
        expect(
            difference <= allowed,
            f"{sentence}: {name} differs by {difference:.2g}, allowed is {allowed:.2g}",
        )


@contextmanager
def raising_means(sentence: str) -> Iterator[None]:
    """Turn what is raised inside into a :class:`ConformanceError` that opens with ``sentence``."""
    try:
        yield
    except (ConformanceError, unittest.SkipTest):
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        what = f"{type(error).__name__}: {first_line:.120}"
        raise ConformanceError(f"{sentence}: {what}") from error
