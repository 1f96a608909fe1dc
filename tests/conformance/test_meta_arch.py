"""Every broken detector is YOLOF with one fault."""

from __future__ import annotations

import torch
from torch import nn

from tests.conformance.slots import SlotTests
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


class IgnoresItsThreshold(YOLOF):
    def postprocess(self, *args):
        kept, self.score_thresh = self.score_thresh, 0.0
        results = super().postprocess(*args)
        self.score_thresh = kept
        return results


class _Uncounted(YOLOFFamily):
    counted_matches = DetectorFamily.counted_matches


class CountsNoMatches(YOLOF):
    detector_family = _Uncounted()


class TestMetaArch(SlotTests):
    slot = "meta_arch"
    test_a_sound_part_passes = None  # test_suite.py runs all checks on every detector
    broken = {
        "is_a_detector": {"it could not be built: KeyError: 'a key'": CannotBeBuilt},
        "losses_are_finite": {"infinite or NaN with no object in the batch": DividesByTheObjects},
        "gradients_reach_every_parameter": {
            "(dead.weight, dead.bias) get no gradient": HasADeadLayer
        },
        "detections_keep_the_contract": {
            "boxes reach out of an image of (128, 48)": DetectsOutside
        },
        "boxes_are_scaled_to_the_wanted_size": {"four times as large ones": IgnoresTheWantedSize},
        "weights_survive_saving_and_loading": {"no registered buffer?": ForgetsATensor},
        "class_count_is_that_of_the_config": {"wanted three times as many": HasAClassCountOfItsOwn},
        "family_tells_the_parts": {"the parts ended in the order": SwapsItsParts},
        "family_sets_the_threshold": {"are not all above it": IgnoresItsThreshold},
        "family_counts_matches": {"no matches are counted": CountsNoMatches},
    }
