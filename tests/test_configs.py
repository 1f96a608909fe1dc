from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from yolof_d2.config import build_cfg

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
IDS = [str(file.relative_to(CONFIGS)) for file in FILES]


@pytest.fixture(scope="module")
def published():
    return build_cfg(str(CONFIGS / "yolof_R_50_C5_1x.yaml"))


@pytest.fixture(scope="module")
def model(published):
    cfg = published.clone()
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_config_loads_and_builds_its_model(file):
    cfg = build_cfg(str(file), ["MODEL.DEVICE", "cpu"])
    assert type(build_model(cfg)).__name__ == cfg.MODEL.META_ARCHITECTURE


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_config_starts_with_a_comment(file):
    assert file.read_text().startswith("# ")


PUBLISHED = {
    # Model
    "MODEL.META_ARCHITECTURE": "YOLOF",
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.YOLOF.NUM_CLASSES": 80,
    "MODEL.YOLOF.ENCODER.DILATED.NUM_CHANNELS": 512,
    "MODEL.YOLOF.ENCODER.DILATED.MID_CHANNELS": 128,
    "MODEL.YOLOF.ENCODER.DILATED.DILATIONS": [2, 4, 6, 8],
    "MODEL.YOLOF.ENCODER.DILATED.NORM": "BN",
    "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NUM_CLS_CONVS": 2,
    "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.NUM_REG_CONVS": 4,
    "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS.PRIOR_PROB": 0.01,
    "MODEL.YOLOF.MATCHER.UNIFORM.TOPK": 4,
    "MODEL.YOLOF.MATCHER.UNIFORM.POS_IGNORE_IOU": 0.15,
    "MODEL.YOLOF.MATCHER.UNIFORM.NEG_IGNORE_IOU": 0.7,
    "MODEL.YOLOF.LOSS.FOCAL_GIOU.FOCAL_ALPHA": 0.25,
    "MODEL.YOLOF.LOSS.FOCAL_GIOU.FOCAL_GAMMA": 2.0,
    "MODEL.YOLOF.BOX_TRANSFORM.WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.YOLOF.BOX_TRANSFORM.CENTER_CLAMP": 32,
    # Test
    "MODEL.YOLOF.SCORE_THRESH_TEST": 0.05,
    "MODEL.YOLOF.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.YOLOF.NMS_THRESH_TEST": 0.6,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    # Data
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.RANDOM_SHIFT.PROB": 0.5,
    "INPUT.RANDOM_SHIFT.MAX_PIXELS": 32,
    "INPUT.CROP.ENABLED": False,
    # Solver
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.BASE_LR": 0.12,
    "SOLVER.BACKBONE_LR_FACTOR": 0.334,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 0.00066667,
    "SOLVER.WARMUP_ITERS": 1500,
    "SOLVER.STEPS": (15000, 20000),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MAX_ITER": 22500,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.AMP.ENABLED": False,
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_1x_config_carries_the_published_recipe(published, key):
    value = published
    for name in key.split("."):
        value = value[name]
    assert value == PUBLISHED[key]


def test_the_1x_config_says_what_to_expect_and_how_to_run_it():
    header = (CONFIGS / "yolof_R_50_C5_1x.yaml").read_text().split("_BASE_")[0]
    assert "37.7 AP" in header and "Not trained by us" in header
    assert "python train_net.py --config-file configs/yolof_R_50_C5_1x.yaml" in header


def count(module: nn.Module) -> float:
    """Parameters in millions, those of frozen layers and norms included, as in the paper."""
    frozen = [m for m in module.modules() if isinstance(m, FrozenBatchNorm2d)]
    buffers = sum(m.weight.numel() + m.bias.numel() for m in frozen)
    return (sum(p.numel() for p in module.parameters()) + buffers) / 1e6


def test_the_1x_model_has_the_published_size(model):
    assert count(model) == pytest.approx(44.1, abs=0.1)
    for part, published in ((model.encoder, 4.52), (model.decoder, 16.11)):
        weights = sum(p.numel() for p in part.parameters() if p.dim() == 4) / 1e6
        assert weights == pytest.approx(published, abs=0.01)
