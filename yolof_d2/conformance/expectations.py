"""Raise findings as :class:`ConformanceError`."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class ConformanceError(AssertionError):
    """A part breaks its slot's contract; the message says what was got and what is wanted."""


def expect(kept: bool | Tensor, sentence: str) -> None:
    """Raise :class:`ConformanceError` with ``sentence`` unless ``kept``."""
    if not kept:
        raise ConformanceError(sentence)


def expect_kind(value: object, kind: type, what: str = "it is") -> None:
    """Raise unless ``value`` is of a class; ``what`` opens the sentence."""
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    sentence = f"{what} a {type(value).__name__}; wanted {article} {kind.__name__}"
    expect(isinstance(value, kind), sentence)


def expect_finite(outputs: Mapping[str, Tensor], when: str) -> None:
    """Raise unless all values of ``outputs`` are finite; ``when`` ends the sentence."""
    for name, value in outputs.items():
        bad = int((~value.isfinite()).sum())
        expect(not bad, f"{name} has {bad} values that are infinite or NaN {when}; wanted none")


def expect_unchanged(inputs: Mapping[str, Tensor], run: Callable[[], object], when: str) -> None:
    """Raise if ``run`` changes a tensor of ``inputs`` in place."""
    before = {name: value.clone() for name, value in inputs.items()}
    run()
    for name, value in inputs.items():
        expect(torch.equal(value, before[name]), f"{name} was changed in place {when}")


def expect_on_meta(outputs: Mapping[str, Tensor]) -> None:
    """Raise unless all outputs are on the meta device, where the inputs were."""
    for name, value in outputs.items():
        expect(value.is_meta, f"{name} is on {value.device}; wanted the device of the inputs")


def expect_same(
    got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], sentence: str, tolerance: float = 0.0
) -> None:
    """Raise, with ``sentence`` first, unless both hold the same values.

    ``tolerance`` is the allowed difference relative to the largest value of each output.
    """
    for name, value in wanted.items():
        other = got[name]
        expect(
            other.shape == value.shape,
            f"{sentence}: {name} has shape {list(other.shape)} in place of {list(value.shape)}",
        )
        if not value.numel():
            continue
        difference = float((other.double() - value.double()).abs().max())
        allowed = tolerance * float(value.abs().max())
        expect(
            difference <= allowed,  # false for NaN
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
