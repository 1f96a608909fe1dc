from __future__ import annotations

import pytest
from detectron2.modeling import build_model

from yolof_d2.benchmark.cost import describe_cost
from yolof_d2.config import build_cfg
from yolof_d2.measure.model_cost import build_meta_model, count_multiply_adds


@pytest.mark.parametrize("name", ["synthetic", "synthetic_retinanet"])
def test_parameters_and_multiply_adds_of_the_parts_are_those_of_the_model(name):
    cfg = build_cfg(f"configs/quick/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    found = describe_cost(cfg, (64, 96))
    parameters = sum(sum(part.values()) for part in found["parameters"].values())
    assert parameters == sum(p.numel() for p in build_model(cfg).parameters())
    assert found["parameters"]["other"] == {"trainable": 0, "frozen": 0}
    whole = count_multiply_adds(build_meta_model(cfg), tuple(found["padded_size"]))
    assert sum(found["multiply_adds"].values()) == whole


def test_the_encoders_multiply_adds_worked_out_by_hand():
    projector = ["MODEL.YOLOF.ENCODER.NAME", "ProjectorEncoder"]
    found = describe_cost(build_cfg("configs/quick/synthetic.yaml", projector), (64, 96))
    cells = (64 // 16) * (96 // 16)
    assert found["multiply_adds"]["encoder"] == cells * (256 * 128 + 9 * 128 * 128)
