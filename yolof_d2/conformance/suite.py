"""Find registered parts, and run the checks of their slots."""

from __future__ import annotations

import inspect
import itertools
import sys
import unittest
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from yolof_d2.config import build_cfg, load_plugins
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import DECODER_REGISTRY, ENCODER_REGISTRY, LOSS_REGISTRY, MATCHER_REGISTRY

from .. import modeling  # noqa: F401  registers the parts of this package
from . import backbone, decoder, encoder, loss, matcher, meta_arch
from .expectations import expect, raising_means

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Slot:
    """A place in the model for parts of one kind.

    Attributes:
        key: the config key that selects a part by name.
        registry: where parts are registered.
        subject: makes the argument of the checks from a config that selects a part.
    """

    key: str
    registry: Registry
    subject: type

    @property
    def checks(self) -> list[Check]:
        """All functions that take a subject, of its module and of those of its base classes.

        They come as they are written; the first says whether there is a part at all.
        """
        modules = [sys.modules[kind.__module__] for kind in inspect.getmro(self.subject)]
        functions = [each for module in modules for each in vars(module).items()]
        return [
            each
            for name, each in functions
            if inspect.isfunction(each)
            and not name.startswith("_")
            and [*inspect.signature(each).parameters] == ["subject"]
        ]


SLOTS = {
    "encoder": Slot("MODEL.YOLOF.ENCODER.NAME", ENCODER_REGISTRY, encoder.EncoderSubject),
    "decoder": Slot("MODEL.YOLOF.DECODER.NAME", DECODER_REGISTRY, decoder.DecoderSubject),
    "matcher": Slot("MODEL.YOLOF.MATCHER.NAME", MATCHER_REGISTRY, matcher.MatcherSubject),
    "loss": Slot("MODEL.YOLOF.LOSS.NAME", LOSS_REGISTRY, loss.LossSubject),
    "backbone": Slot("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY, backbone.BackboneSubject),
    "meta_arch": Slot("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY, meta_arch.MetaArchSubject),
}

# A part whose class attribute not_promised maps one of these to a reason is excused from it.
WAIVABLE = frozenset(
    {
        "anchors_come_in_the_order_of_the_generator",
        "can_be_traced",
        "class_count_is_that_of_the_config",
        "family_counts_matches",
        "family_sets_the_threshold",
        "family_tells_the_parts",
        "never_waits_for_the_device",
        "survives_predictions_that_are_not_finite",
    }
)

# The parts of this package, made small: a check is about behaviour, not about width.
SMALL = {
    "MODEL.YOLOF.NUM_CLASSES": "3",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[32, 64, 128]]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "[[1.0]]",
    "MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS": "32",
    "MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS": "16",
    "MODEL.YOLOF.ENCODER.PROJECTOR.NUM_CHANNELS": "32",
    "MODEL.YOLOF.ENCODER.ASPP.NUM_CHANNELS": "32",
    "MODEL.YOLOF.ENCODER.TRANSFORMER.NUM_CHANNELS": "32",
    "MODEL.YOLOF.ENCODER.TRANSFORMER.NUM_LAYERS": "2",
    "MODEL.YOLOF.ENCODER.TRANSFORMER.FEEDFORWARD_CHANNELS": "64",
    "MODEL.RESNETS.OUT_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "8",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.FPN.IN_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.CSPDARKNET.STEM_OUT_CHANNELS": "4",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One check of one part; ``str(case)`` is ``slot/name/check``.

    Attributes:
        part: ``slot/name``, such as ``encoder/DilatedEncoder``.
        check: one of the slot's checks.
        cfg: of the part.
    """

    part: str
    check: Check
    cfg: CfgNode = field(repr=False)

    def __str__(self) -> str:
        return f"{self.part}/{self.check.__name__}"

    @property
    def is_first(self) -> bool:
        """Whether this check says if there is a part at all."""
        return self.check is SLOTS[self.part.split("/")[0]].checks[0]

    def run(self) -> None:
        """Run the check from a fixed random state, in one thread; both are restored afterwards.

        Raises:
            ConformanceError: the part breaks its contract.
            unittest.SkipTest: the part does not promise this, or the machine cannot do it.
        """
        slot_name, name = self.part.split("/")
        slot = SLOTS[slot_name]
        cfg = self.cfg.clone()
        cfg.merge_from_list([slot.key, name])
        subject = slot.subject(cfg)
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(0)
            if self.is_first or self.check.__name__ in WAIVABLE:
                with raising_means("it could not be built"):
                    waived = getattr(subject.build(), "not_promised", {})
                unknown = sorted(set(waived) - WAIVABLE)
                expect(
                    not unknown,
                    f"its not_promised names {unknown}; only these can be waived: "
                    + ", ".join(sorted(WAIVABLE)),
                )
                if self.check.__name__ in waived:
                    raise unittest.SkipTest(waived[self.check.__name__])
            with raising_means("it raised an error"):
                self.check(subject)


def find_cases(plugin: str = "", overrides: Sequence[str] = (), *, part: str = "") -> list[Case]:
    """Return every check of some parts.

    Args:
        plugin: an entry of ``PLUGINS``, for the parts that it registers. Empty for every registered
            part; of Detectron2's own, the ResNet and RetinaNet only, as others want other configs.
        overrides: ``KEY VALUE`` pairs, flat. The parts of this package are small by default. A
            detector is given those that it reads.
        part: ``slot/name``, for that one alone.

    Raises:
        ConfigError: what :func:`build_cfg` refuses, a plug-in without parts, or no such part.
    """
    words = [*(["PLUGINS", repr((plugin,))] if plugin else []), *overrides]
    written = dict(zip(words[::2], words[1::2], strict=False))
    plugins = ["PLUGINS", written["PLUGINS"]] if "PLUGINS" in written else []
    build_cfg("", plugins + words[len(words) // 2 * 2 :])  # imports; refuses half pairs
    parts = registered_parts(load_plugins([plugin])[0].__name__ if plugin else "")
    if part:
        slot, _, name = part.partition("/")
        if slot not in SLOTS or name not in SLOTS[slot].registry:
            known = ", ".join(registered_parts())
            raise ConfigError(f"there is no part {part!r}; known are {known}")
        parts = [part]
    if not parts:
        raise ConfigError(
            f"{plugin} registers no {', '.join(SLOTS)}; is @ENCODER_REGISTRY.register() missing?"
        )
    small = {"MODEL.META_ARCHITECTURE": "YOLOF", **SMALL}
    cases = []
    for part in parts:
        slot, name = part.split("/")
        is_detector = slot == "meta_arch"
        keys = meta_arch.select(name, SMALL, written) if is_detector else {**small, **written}
        cfg = build_cfg("", list(itertools.chain(*keys.items())))
        cases += [Case(part, check, cfg) for check in SLOTS[slot].checks]
    return cases


def registered_parts(module: str = "") -> list[str]:
    """Return ``slot/name`` of each part defined in ``module`` or below; of all if empty."""
    return [
        f"{slot_name}/{name}"
        for slot_name, slot in SLOTS.items()
        for name, part in slot.registry
        if _is_wanted(name, getattr(part, "__module__", ""), module)
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run PyTorch in one thread: on tensors as small as here, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_wanted(name: str, defined_in: str, module: str) -> bool:
    if module:
        return f"{defined_in}.".startswith(f"{module}.")
    own = not defined_in.startswith("detectron2.")
    return own or name in ("build_resnet_backbone", "RetinaNet")
