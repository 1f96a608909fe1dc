"""The suite of detectors finds each fault: every broken detector is YOLOF with one fault.

That sound ones pass is shown by test_builtin_parts.py and tests/modeling/test_families.py.
"""

from __future__ import annotations

import re
import unittest

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from yolof_d2.conformance import SLOTS, WAIVABLE, Case, ConformanceError, find_cases
from yolof_d2.modeling import YOLOF
from yolof_d2.modeling.families import DetectorFamily, Parts, YOLOFFamily


class CannotBeBuilt(YOLOF):
    @classmethod
    def from_config(cls, cfg):
        raise KeyError("a key")


class DividesByTheObjects(YOLOF):
    def forward(self, batched_inputs):
        result = super().forward(batched_inputs)
        if self.training:
            result["loss_cls"] = result["loss_cls"] / sum(
                len(image["instances"]) for image in batched_inputs
            )
        return result


class HasADeadLayer(YOLOF):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dead = nn.Linear(1, 1)


class DetectsOutside(YOLOF):
    def postprocess(self, *args):
        results = super().postprocess(*args)
        for result in results:
            result["instances"].pred_boxes.tensor += 1000
        return results


class IgnoresTheWantedSize(YOLOF):
    def postprocess(self, logits, boxes, batched_inputs, image_sizes):
        return super().postprocess(logits, boxes, [{} for _ in batched_inputs], image_sizes)


class ForgetsATensor(YOLOF):
    def predict(self, images):
        if not hasattr(self, "offset"):
            self.offset = torch.rand(())
        logits, *rest = super().predict(images)
        return logits + self.offset, *rest


class HasAClassCountOfItsOwn(YOLOF):
    @classmethod
    def from_config(cls, cfg):
        cfg = cfg.clone()
        cfg.MODEL.YOLOF.NUM_CLASSES = 3
        return super().from_config(cfg)


class _SwappedParts(YOLOFFamily):
    def find_parts(self, model):
        return Parts(model.backbone, model.decoder, model.encoder)


class SwapsItsParts(YOLOF):
    detector_family = _SwappedParts()


class _WrongThreshold(YOLOFFamily):
    threshold = "nms_thresh"


class HasAnotherThreshold(YOLOF):
    detector_family = _WrongThreshold()


class _Uncounted(YOLOFFamily):
    counted_matches = DetectorFamily.counted_matches


class CountsNoMatches(YOLOF):
    detector_family = _Uncounted()


BROKEN = [
    (CannotBeBuilt, "is_a_detector", "it could not be built: KeyError: 'a key'"),
    (DividesByTheObjects, "losses_are_finite", "infinite or NaN with no object in the batch"),
    (HasADeadLayer, "gradients_reach_every_parameter", "(dead.weight, dead.bias) get no gradient"),
    (DetectsOutside, "detections_keep_the_contract", "boxes reach out of an image of (128, 48)"),
    (IgnoresTheWantedSize, "boxes_are_scaled_to_the_wanted_size", "four times as large ones"),
    (ForgetsATensor, "weights_survive_saving_and_loading", "no registered buffer?"),
    (HasAClassCountOfItsOwn, "class_count_is_that_of_the_config", "wanted three times as many"),
    (SwapsItsParts, "family_tells_the_parts", "the parts ended in the order"),
    (HasAnotherThreshold, "family_sets_the_threshold", "are not all above it"),
    (CountsNoMatches, "family_counts_matches", "no matches are counted"),
]


@pytest.fixture
def case_of(monkeypatch):
    def find(detector: type, check: str) -> Case:
        known = {**META_ARCH_REGISTRY._obj_map, detector.__name__: detector}
        monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", known)
        cases = find_cases(part=f"meta_arch/{detector.__name__}")
        (case,) = [case for case in cases if case.check.__name__ == check]
        return case

    return find


@pytest.mark.parametrize(
    ("detector", "check", "sentence"), BROKEN, ids=[detector.__name__ for detector, *_ in BROKEN]
)
def test_a_broken_detector_fails_and_hears_why(case_of, detector, check, sentence):
    with pytest.raises(ConformanceError, match=re.escape(sentence)):
        case_of(detector, check).run()


def test_every_check_has_a_detector_that_it_catches():
    checks = [check.__name__ for check in SLOTS["meta_arch"].checks]
    assert [check for _, check, _ in BROKEN] == checks


@pytest.mark.parametrize("check", sorted(WAIVABLE & {check for _, check, _ in BROKEN}))
def test_what_a_family_does_not_promise_is_skipped_with_its_reason(case_of, check):
    frank = type("Frank", (YOLOF,), {"not_promised": {check: "by design"}})
    with pytest.raises(unittest.SkipTest, match="by design"):
        case_of(frank, check).run()
