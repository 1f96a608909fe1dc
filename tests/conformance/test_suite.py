"""Every part of this package, as registered, passes the suite of its slot."""

from __future__ import annotations

import pytest

from yolof_d2.conformance import SLOTS, Case, find_cases, registered_parts

PARTS = [*registered_parts("yolof_d2"), "backbone/build_resnet_backbone", "meta_arch/RetinaNet"]

# Settings that take other paths through a part than its defaults.
VARIANTS = {
    "encoder/DilatedEncoder": [
        "MODEL.YOLOF.ENCODER.DILATED.NORM GN MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS 64 "
        "MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS 64",  # two per group: one cell has a variance
        "MODEL.YOLOF.ENCODER.DILATED.SHORTCUT False MODEL.YOLOF.ENCODER.DILATED.NORM ''",
    ],
    "decoder/ImplicitObjectnessDecoder": [
        "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NUM_SHARED_CONVS 2",
        "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NUM_CLS_CONVS 0 "
        "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NUM_REG_CONVS 0",
    ],
    "decoder/PlainDecoder": [
        "MODEL.YOLOF.DECODER.PLAIN.NUM_CLS_CONVS 0 MODEL.YOLOF.DECODER.PLAIN.NUM_REG_CONVS 0"
    ],
    "matcher/UniformMatcher": [
        "MODEL.YOLOF.MATCHER.UNIFORM.CANDIDATES ['anchors']",
        "MODEL.YOLOF.MATCHER.UNIFORM.TOPK 200 MODEL.YOLOF.MATCHER.UNIFORM.POS_IGNORE_IOU 0.0",
    ],
    "matcher/MaxIoUMatcher": ["MODEL.YOLOF.MATCHER.MAX_IOU.ALLOW_LOW_QUALITY False"],
    "loss/FocalBoxLoss": [
        f"MODEL.YOLOF.LOSS.FOCAL_BOX.BBOX_REG_LOSS_TYPE {kind}"
        for kind in ("iou", "diou", "ciou", "l1")
    ],
    "backbone/build_resnet_backbone": [
        "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.BACKBONE.FREEZE_AT 5",
        "MODEL.RESNETS.RES5_DILATION 2 MODEL.RESNETS.NORM FrozenBN",
    ],
}


def cases() -> list:
    return [
        pytest.param(case, id=f"{case} {overrides}".strip())
        for part in PARTS
        for overrides in ["", *VARIANTS.get(part, [])]
        for case in find_cases(part=part, overrides=overrides.split())
    ]


@pytest.mark.parametrize("case", cases())
def test_a_part_of_this_package_keeps_its_contract(case: Case):
    if case.part == "backbone/build_timm_backbone":
        pytest.importorskip("timm", reason="timm is an optional dependency")
    case.run()


def test_no_slot_is_without_a_part():
    assert {part.split("/")[0] for part in PARTS} == set(SLOTS)
