"""Tests of the checks of one slot: sound parts pass all, and each broken part fails one."""

from __future__ import annotations

import re
import unittest
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from yolof_d2.conformance import SLOTS, WAIVABLE, Case, ConformanceError, find_cases


def broken(sound: type, **faults: Any) -> type:
    """A sound part with other attributes; a function is called with self and the sound method."""

    def replace(name: str, fault: Any) -> Any:
        if not callable(fault):
            return fault
        method = getattr(sound, name)
        return lambda self, *inputs: fault(self, partial(method, self), *inputs)

    return type("Broken", (sound,), {name: replace(name, fault) for name, fault in faults.items()})


def case_of(monkeypatch: pytest.MonkeyPatch, slot: str, part: type, check: str) -> Case:
    """Register a part for the length of one test, and find a check of it."""
    registry = SLOTS[slot].registry
    monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map, part.__name__: part})
    cases = find_cases(part=f"{slot}/{part.__name__}")
    (case,) = [case for case in cases if case.check.__name__ == check]
    return case


class SlotTests:
    """The tests of a slot; its own class gives the parts.

    Attributes:
        slot: its name.
        sound: parts that keep the contract.
        broken: check -> what its sentence must say -> a part that is broken so.
    """

    slot: str
    sound: list[type]
    broken: dict[str, dict[str, type]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks = [check.__name__ for check in SLOTS[self.slot].checks]
        rows = [(c, *row) for c, parts in self.broken.items() for row in parts.items()]
        if "sentence" in metafunc.fixturenames:
            ids = [f"{check}: {sentence}" for check, sentence, _ in rows]
            metafunc.parametrize(("check", "sentence", "part"), rows, ids=ids)
        elif "waived" in metafunc.fixturenames:
            waivable = [(check, part) for check, _, part in rows if check in WAIVABLE]
            ids = [f"{check}{i}" for i, (check, _) in enumerate(waivable)]
            metafunc.parametrize(("waived", "part"), waivable, ids=ids)
        elif "part" in metafunc.fixturenames:
            metafunc.parametrize("check", checks)
            metafunc.parametrize("part", self.sound)

    def test_a_sound_part_passes(self, monkeypatch, part, check):
        case_of(monkeypatch, self.slot, part, check).run()

    def test_a_broken_part_fails_and_hears_why(self, monkeypatch, check, sentence, part):
        with pytest.raises(ConformanceError, match=re.escape(sentence)):
            case_of(monkeypatch, self.slot, part, check).run()

    def test_what_a_part_does_not_promise_is_skipped_with_its_reason(
        self, monkeypatch, waived, part
    ):
        frank = type("Frank", (part,), {"not_promised": {waived: "by design"}})
        with pytest.raises(unittest.SkipTest, match="by design"):
            case_of(monkeypatch, self.slot, frank, waived).run()
        case_of(monkeypatch, self.slot, frank, SLOTS[self.slot].checks[0].__name__).run()

    def test_every_check_has_a_part_that_it_catches(self):
        own = f"yolof_d2.conformance.{self.slot}"  # encoders show those that slots share
        checks = [
            c for c in SLOTS[self.slot].checks if self.slot == "encoder" or c.__module__ == own
        ]
        assert {check.__name__ for check in checks} <= self.broken.keys()


def alters(sound: type, method: str) -> Callable[..., type]:
    """:func:`broken` for faults that change what a method returned."""
    return lambda change: broken(sound, **{method: lambda self, sound, *x: change(sound(*x))})


def breaks(sound: type, method: str) -> Callable[..., type]:
    """:func:`broken` for a slot in which most faults are in one method."""
    return lambda fault, part=sound: broken(part, **{method: fault})
