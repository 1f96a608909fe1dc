from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo as detectron2_model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.small import ROOT, data_keys, leaves, write_data
from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.engine import Trainer
from yolof_d2.measure.model_cost import build_meta_model, count_parameters

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
FRAGMENTS = [file for file in FILES if file.parent.name == "fragments"]
BASES = [file for file in FILES if file.name.startswith("Base-")]
MODELS = [file for file in FILES if file not in [*FRAGMENTS, *BASES]]


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


each_file = pytest.mark.parametrize("file", FILES, ids=name_of)
each_model = pytest.mark.parametrize("file", MODELS, ids=name_of)


def load(name: str) -> CfgNode:
    return build_cfg(str(CONFIGS / f"{name}.yaml"))


@pytest.fixture(scope="module")
def published() -> CfgNode:
    return load("yolof_R_50_C5_1x")


# Every config trains two steps and predicts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), num_train=6)


@pytest.fixture(autouse=True)
def forget_datasets():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def shrink(cfg: CfgNode) -> None:
    """Make model and images small, and what only runs on a GPU (SyncBN) its CPU counterpart."""
    model, yolof = cfg.MODEL, cfg.MODEL.YOLOF
    model.DEVICE, model.WEIGHTS = "cpu", ""
    if model.RESNETS.DEPTH >= 50:
        model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = 8, 16
        model.RESNETS.NUM_GROUPS = min(model.RESNETS.NUM_GROUPS, 4)
        model.RESNETS.WIDTH_PER_GROUP = 4
    model.CSPDARKNET.STEM_OUT_CHANNELS = 4
    model.TIMM.NAME, model.TIMM.PRETRAINED = "resnet18", False
    model.FPN.OUT_CHANNELS = 64
    yolof.ENCODER.DILATED.NUM_CHANNELS, yolof.ENCODER.DILATED.MID_CHANNELS = 32, 16
    yolof.ENCODER.PROJECTOR.NUM_CHANNELS = yolof.ENCODER.ASPP.NUM_CHANNELS = 32
    transformer = yolof.ENCODER.TRANSFORMER
    transformer.NUM_CHANNELS, transformer.NUM_LAYERS, transformer.FEEDFORWARD_CHANNELS = 32, 2, 64
    for node in (model.CSPDARKNET, yolof.ENCODER.DILATED, yolof.DECODER.IMPLICIT_OBJECTNESS):
        node.NORM = node.NORM.replace("SyncBN", "BN")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    if cfg.INPUT.FIXED_SIZE.TRAIN:
        cfg.INPUT.FIXED_SIZE.TRAIN, cfg.INPUT.FIXED_SIZE.TEST = (160, 160), (96, 96)
        cfg.INPUT.MOSAIC.SIZE = (160, 160)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, ()
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.BASE_LR = 1e-3


@each_model
def test_every_config_trains_two_steps_and_predicts(file, data, tmp_path):
    cfg = build_cfg(str(file))
    shrink(cfg)
    cfg.merge_from_list(data_keys(data))
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SEED = 0
    resolve_datasets(cfg)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    assert type(trainer.model).__name__ == cfg.MODEL.META_ARCHITECTURE
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.iter == 2
    after = dict(trainer.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    moved = [name for name, p in after.items() if not torch.equal(p, before[name])]
    assert any("cls_score" in name for name in moved)
    assert any(name.startswith("backbone.") for name in moved)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (result,) = trainer.model.eval()([{"image": image, "height": 32, "width": 48}])
    assert result["instances"].image_size == (32, 48)


# Files


@each_model
def test_every_config_says_what_it_is_what_was_published_and_how_to_run_it(file):
    header = re.match(r"(#.*\n)+", file.read_text()).group()
    known = r"^# Published:  (none|paper, (Table|Figure) .+; |\d+\.\d AP.* \(.+\))"
    assert re.search(known, header, re.MULTILINE)
    command = header.split("# Command:")[1]
    assert f"--config-file configs/{name_of(file)}" in command


@each_file
def test_every_file_starts_with_a_comment_and_its_keys_are_known_and_new(file):
    assert file.read_text().startswith("# ")
    own = yaml.safe_load(file.read_text())
    bases = own.pop("_BASE_", [])
    inherited: dict[str, object] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= leaves(CfgNode.load_yaml_with_base(str(file.parent / base)))
    own = leaves(own)
    assert own.keys() <= leaves(build_cfg()).keys()
    assert [key for key in own if own[key] == inherited.get(key, object())] == []


def test_no_two_configs_share_an_output_folder():
    assert [file for file in MODELS if "OUTPUT_DIR:" not in file.read_text()] == []
    assert len({build_cfg(str(file)).OUTPUT_DIR for file in MODELS}) == len(MODELS)


# The published recipes


PUBLISHED = """
MODEL:
  META_ARCHITECTURE: YOLOF
  WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-50.pkl
  BACKBONE: {FREEZE_AT: 2}
  RESNETS: {DEPTH: 50, NORM: FrozenBN, STRIDE_IN_1X1: True, OUT_FEATURES: [res5]}
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  ANCHOR_GENERATOR: {SIZES: [[32, 64, 128, 256, 512]], ASPECT_RATIOS: [[1.0]], OFFSET: 0.0}
  YOLOF:
    NUM_CLASSES: 80
    ENCODER:
      DILATED: {NUM_CHANNELS: 512, MID_CHANNELS: 128, DILATIONS: [2, 4, 6, 8], NORM: BN}
    DECODER: {IMPLICIT_OBJECTNESS: {NUM_CLS_CONVS: 2, NUM_REG_CONVS: 4, PRIOR_PROB: 0.01}}
    MATCHER: {UNIFORM: {TOPK: 4, POS_IGNORE_IOU: 0.15, NEG_IGNORE_IOU: 0.7}}
    LOSS: {FOCAL_BOX: {FOCAL_ALPHA: 0.25, FOCAL_GAMMA: 2.0}}
    BOX_TRANSFORM: {WEIGHTS: [1.0, 1.0, 1.0, 1.0], CENTER_CLAMP: 32}
    SCORE_THRESH_TEST: 0.05
    TOPK_CANDIDATES_TEST: 1000
    NMS_THRESH_TEST: 0.6
TEST: {DETECTIONS_PER_IMAGE: 100}
DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}
DATALOADER: {FILTER_EMPTY_ANNOTATIONS: True, ASPECT_RATIO_GROUPING: True}
INPUT:
  FORMAT: BGR
  MIN_SIZE_TRAIN: [800]
  MAX_SIZE_TRAIN: 1333
  MIN_SIZE_TEST: 800
  MAX_SIZE_TEST: 1333
  RANDOM_FLIP: horizontal
  RANDOM_SHIFT: {PROB: 0.5, MAX_PIXELS: 32}
  CROP: {ENABLED: False}
SOLVER:
  IMS_PER_BATCH: 64
  BASE_LR: 0.12
  BACKBONE_LR_FACTOR: 0.334
  MOMENTUM: 0.9
  NESTEROV: False
  WEIGHT_DECAY: 0.0001
  WEIGHT_DECAY_NORM: 0.0
  WEIGHT_DECAY_BIAS: null
  BIAS_LR_FACTOR: 1.0
  LR_SCHEDULER_NAME: WarmupMultiStepLR
  WARMUP_METHOD: linear
  WARMUP_FACTOR: 0.00066667
  WARMUP_ITERS: 1500
  STEPS: [15000, 20000]
  GAMMA: 0.1
  MAX_ITER: 22500
  CLIP_GRADIENTS: {ENABLED: False}
  AMP: {ENABLED: False}
"""
DC5 = """
MODEL:
  RESNETS: {RES5_DILATION: 2}
  ANCHOR_GENERATOR: {SIZES: [[16, 32, 64, 128, 256, 512]]}
  YOLOF:
    ENCODER: {DILATED: {DILATIONS: [4, 8, 12, 16]}}
    MATCHER: {UNIFORM: {TOPK: 8, POS_IGNORE_IOU: 0.1}}
"""
BATCH_32 = """
SOLVER:
  IMS_PER_BATCH: 32
  BASE_LR: 0.06
  WARMUP_FACTOR: 0.000334
  WARMUP_ITERS: 3000
  MAX_ITER: 45000
  STEPS: [30000, 40000]
"""
R101 = "MODEL: {RESNETS: {DEPTH: 101}, WEIGHTS: 'detectron2://ImageNetPretrained/MSRA/R-101.pkl'}"
X101 = """
MODEL:
  WEIGHTS: catalog://ImageNetPretrained/FAIR/X-101-64x4d
  RESNETS: {DEPTH: 101, NUM_GROUPS: 64, WIDTH_PER_GROUP: 4, STRIDE_IN_1X1: False}
"""
CSP = """
MODEL:
  WEIGHTS: cspdarknet53.pth
  BACKBONE: {NAME: build_cspdarknet_backbone, FREEZE_AT: 3}
  CSPDARKNET: {NORM: SyncBN, RES5_DILATION: 2}
  YOLOF:
    ENCODER:
      DILATED: {DILATIONS: [1, 2, 3, 4, 5, 6, 7, 8], NORM: SyncBN, ACTIVATION: LeakyReLU}
    DECODER: {IMPLICIT_OBJECTNESS: {NORM: SyncBN, ACTIVATION: LeakyReLU}}
SOLVER: {BASE_LR: 0.04, BACKBONE_LR_FACTOR: 1.0, STEPS: [52500, 62500], MAX_ITER: 67500}
INPUT:
  MOSAIC: {PROB: 0.5, SIZE: [640, 640], CENTER_RANGE: [0.2, 0.8]}
  JITTER_CROP: {RATIO: 0.3}
  FIXED_SIZE: {TRAIN: [640, 640], TEST: [608, 608], SCALE_JITTER: [0.8, 1.2]}
  COLOR_DISTORTION: {PROB: 1.0, HUE: 0.1, SATURATION: 1.5, EXPOSURE: 1.5}
"""
CSP_9X = "SOLVER: {STEPS: [187500, 197500], MAX_ITER: 202500}"
STAGE_2 = """
MODEL:
  WEIGHTS: output/yolof_CSP_D_53_DC5_9x/model_final.pth
  YOLOF: {MATCHER: {UNIFORM: {NEG_IGNORE_IOU: 0.8}}}
"""
# What a config changes of the R50-C5 recipe above; everything else must be equal to it.
RECIPES = {
    "yolof_R_50_C5_1x": [PUBLISHED],
    "yolof_R_50_DC5_1x": [DC5],
    "yolof_R_101_C5_1x": [R101],
    "yolof_R_101_DC5_1x": [R101, DC5, BATCH_32],
    "yolof_X_101_64x4d_C5_1x": [BATCH_32, X101],
    "yolof_CSP_D_53_DC5_3x": [DC5, CSP],
    "yolof_CSP_D_53_DC5_9x": [DC5, CSP, CSP_9X],
    "yolof_CSP_D_53_DC5_9x_stage2_3x": [DC5, CSP, STAGE_2],
    "yolof_R_50_C5_1x_batch32": [BATCH_32],
}
# Without effect on results.
IRRELEVANT = {"OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"}


def differing(cfg: CfgNode, other: CfgNode) -> dict[str, tuple[object, object]]:
    """Return the keys of ``other`` that count and differ, with both values."""
    values, others = leaves(cfg), leaves(other)
    keys = others.keys() - IRRELEVANT
    return {key: (values[key], others[key]) for key in keys if values[key] != others[key]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_model_has_its_recipe_and_nothing_else(published, name):
    expected = published.clone()
    for recipe in RECIPES[name]:
        expected.merge_from_other_cfg(CfgNode(yaml.safe_load(recipe)))
    assert differing(load(name), expected) == {}


@pytest.mark.parametrize(("name", "batch"), [("_batch32", 32), ("_batch16", 16)])
def test_smaller_batches_follow_the_linear_scaling_rule(published, name, batch):
    solver, ratio = load(f"yolof_R_50_C5_1x{name}").SOLVER, 64 / batch
    assert batch == solver.IMS_PER_BATCH
    assert pytest.approx(published.SOLVER.BASE_LR / ratio) == solver.BASE_LR
    assert published.SOLVER.MAX_ITER * ratio == solver.MAX_ITER
    assert tuple(step * ratio for step in published.SOLVER.STEPS) == solver.STEPS
    assert published.SOLVER.WARMUP_ITERS * ratio == solver.WARMUP_ITERS
    assert pytest.approx(1 / solver.WARMUP_ITERS, rel=3e-3) == solver.WARMUP_FACTOR


@pytest.mark.parametrize("depth", [50, 101])
def test_the_comparison_with_detr_is_72_epochs_of_the_same_model(depth):
    short, long = load(f"yolof_R_{depth}_C5_1x"), load(f"yolof_R_{depth}_C5_6x_multiscale")
    assert long.SOLVER.MAX_ITER == 6 * short.SOLVER.MAX_ITER
    assert 72 < long.SOLVER.MAX_ITER * 64 / 117266 < 74
    assert len(long.INPUT.MIN_SIZE_TRAIN) > 1
    assert long.MODEL.dump() == short.MODEL.dump()


# The baselines


@pytest.mark.parametrize("depth", [50, 101])
def test_retinanet_is_detectron2s_key_by_key(depth):
    theirs, name = get_cfg(), "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    theirs.merge_from_file(detectron2_model_zoo.get_config_file(name))
    theirs.MODEL.RESNETS.DEPTH = depth
    theirs.MODEL.WEIGHTS = theirs.MODEL.WEIGHTS.replace("R-50", f"R-{depth}")
    assert differing(load(f"baselines/retinanet_R_{depth}_FPN_1x"), theirs) == {}


RECIPE = ("DATASETS.", "INPUT.", "DATALOADER.", "SOLVER.", "TEST.")


@pytest.mark.parametrize(
    "name",
    [
        *(f"baselines/retinanet_R_{depth}_FPN_1x_yolof_recipe" for depth in (50, 101)),
        *(f"baselines/retinanet_plus_R_{depth}_FPN_1x" for depth in (50, 101)),
        *(f"feature_arrangements/{name}_R_50_1x" for name in ("mimo", "simo", "miso", "siso")),
    ],
)
def test_what_is_compared_shares_yolofs_data_schedule_and_augmentation(published, name):
    cfg = load(name)
    differ = {key for key in differing(cfg, published) if key.startswith(RECIPE)}
    # The learning rate is RetinaNet's own, scaled to the batch.
    assert differ == {"SOLVER.BASE_LR", "SOLVER.BACKBONE_LR_FACTOR"}
    assert cfg.SOLVER.BASE_LR == 0.01 * 64 / 16


# Sizes


@pytest.mark.parametrize(
    ("name", "published_millions", "tolerance"),
    [
        ("yolof_R_50_C5_1x", 44.16, 0.01),  # PaddleDetection's, without our convolution biases
        ("yolof_R_18_C5_1x", 31, 0.5),
        ("yolof_R_101_C5_1x", 63, 0.5),
        ("yolof_X_101_64x4d_C5_1x", 102, 0.5),
        ("baselines/retinanet_R_50_FPN_1x", 38, 0.5),
        ("baselines/retinanet_R_101_FPN_1x", 57, 0.5),
    ],
)
def test_models_have_the_published_size(name, published_millions, tolerance):
    millions = count_parameters(build_meta_model(load(name))) / 1e6
    assert millions == pytest.approx(published_millions, abs=tolerance)


def test_the_parts_of_the_1x_model_have_the_published_size(published):
    model = build_meta_model(published)
    for part, weights in ((model.encoder, 4.52), (model.decoder, 16.11)):
        found = sum(p.numel() for p in part.parameters() if p.dim() == 4) / 1e6
        assert found == pytest.approx(weights, abs=0.01)
