"""A narrow YOLOF on generated images, for tests that train a few iterations."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.synthetic import write_synthetic_dataset

CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 16, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}}
  PIXEL_STD: [57.0, 57.0, 57.0]
  YOLOF:
    ENCODER: {{DILATED: {{NUM_CHANNELS: 32, MID_CHANNELS: 16, DILATIONS: [1, 2]}}}}
    DECODER: {{IMPLICIT_OBJECTNESS: {{NUM_CLS_CONVS: 1, NUM_REG_CONVS: 1}}}}
DATASETS:
  TRAIN_JSON: {train}
  TRAIN_IMAGES: {images}
  TEST_JSON: {val}
  TEST_IMAGES: {images}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, BASE_LR: 0.01, WARMUP_ITERS: 2, MAX_ITER: 6, CHECKPOINT_PERIOD: 2}}
TEST: {{EVAL_PERIOD: 0}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SEED: 1
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    data = write_synthetic_dataset(folder, num_train=8, num_val=2, image_size=(64, 64))
    base = Path("configs/yolof_R_50_C5_1x.yaml").absolute()
    file = folder / "tiny.yaml"
    file.write_text(
        CONFIG.format(base=base, train=data.train_json, val=data.val_json, images=data.image_folder)
    )
    return str(file)


@pytest.fixture
def make_cfg(config_file, tmp_path):
    def make(*overrides: object) -> CfgNode:
        words = ["OUTPUT_DIR", str(tmp_path), *map(str, overrides)]
        cfg = build_cfg(config_file, words)
        resolve_datasets(cfg)
        return cfg

    return make
