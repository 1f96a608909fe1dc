"""Configs, data sets and files of runs, as small as tests can do with."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from yolof_d2 import add_yolof_config
from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.synthetic import SyntheticDataset, write_synthetic_dataset

ROOT = Path(__file__).parents[1]
SIZE = 64  # pixels

CONFIG = f"""
_BASE_: {ROOT}/configs/quick/synthetic.yaml
MODEL:
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4}}
  ANCHOR_GENERATOR: {{SIZES: [[12, 24, 48]]}}
  YOLOF:
    ENCODER: {{DILATED: {{NUM_CHANNELS: 16, MID_CHANNELS: 8, DILATIONS: [1]}}}}
    DECODER: {{IMPLICIT_OBJECTNESS: {{NUM_CLS_CONVS: 1, NUM_REG_CONVS: 1}}}}
DATASETS:
  TRAIN_JSON: "@/annotations/instances_train.json"
  TRAIN_IMAGES: "@/images"
  TEST_JSON: "@/annotations/instances_val.json"
  TEST_IMAGES: "@/images"
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{WARMUP_ITERS: 2, CHECKPOINT_PERIOD: 100000}}
INPUT: {{MIN_SIZE_TRAIN: [{SIZE}], MIN_SIZE_TEST: {SIZE}, RANDOM_SHIFT: {{PROB: 0.0}}}}
"""


def default_cfg(*overrides: object) -> CfgNode:
    """The keys of Detectron2 and of this package, unchecked; on the CPU."""
    cfg = get_cfg()
    add_yolof_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(overrides))
    return cfg


def write_data(folder: Path, num_train: int = 4, num_val: int = 2, **options) -> SyntheticDataset:
    """Write images of 64 x 64 pixels with their annotations."""
    options = {"image_size": (SIZE, SIZE), **options}
    return write_synthetic_dataset(folder, num_train=num_train, num_val=num_val, **options)


def data_keys(data: SyntheticDataset) -> list[str]:
    """Overrides that train and test on it."""
    train = ["DATASETS.TRAIN_JSON", data.train_json, "DATASETS.TRAIN_IMAGES", data.image_folder]
    return train + ["DATASETS.TEST_JSON", data.val_json, "DATASETS.TEST_IMAGES", data.image_folder]


def write_config(folder: Path, num_train: int = 64, num_val: int = 16) -> str:
    """Write a config that trains in seconds, and its data; returns the path of the config."""
    write_data(folder / "data", num_train, num_val, seed=0)
    (folder / "model.yaml").write_text(CONFIG.replace("@", str(folder / "data")))
    return str(folder / "model.yaml")


def load(config: str | Path, *overrides: object) -> CfgNode:
    """A config with its data sets, as ``train_net.py`` gives it to the trainer."""
    cfg = build_cfg(str(config), list(map(str, overrides)))
    resolve_datasets(cfg)
    return cfg


def read_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines, such as ``metrics.json``."""
    return [json.loads(line) for line in path.read_text().splitlines()]
