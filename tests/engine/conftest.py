from __future__ import annotations

import pytest
from detectron2.config import CfgNode

from tests.small import load, write_config

OVERRIDES = {
    "SOLVER.IMS_PER_BATCH": 4, "SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 6, "SOLVER.STEPS": (),
    "SOLVER.BACKBONE_LR_FACTOR": 0.334, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 0,
    "SEED": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("engine"), num_train=8, num_val=2)


@pytest.fixture
def make_cfg(config_file, tmp_path):
    """A narrow YOLOF on generated images, for tests that train a few iterations."""

    def make(*overrides: object) -> CfgNode:
        own = [word for pair in OVERRIDES.items() for word in pair]
        return load(config_file, *own, "OUTPUT_DIR", tmp_path, *overrides)

    return make
