"""Config keys: where they are born, and the check that what a user wrote makes sense."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from .errors import ConfigError


def add_yolof_config(cfg: CfgNode) -> None:
    """Add every key of this project to ``cfg``; no existing key is touched.

    The values of ``MODEL.YOLOF`` are those of the published R50-C5 model. What can be derived is no
    key: channels come from the backbone, the number of anchors from ``MODEL.ANCHOR_GENERATOR``, the
    number of blocks from the dilations.
    """
    yolof = cfg.MODEL.YOLOF = CfgNode()
    yolof.NUM_CLASSES = 80  # set from the json when DATASETS.TRAIN_JSON or TEST_JSON is given

    yolof.ENCODER = CfgNode({"NAME": "DilatedEncoder"})
    yolof.ENCODER.DILATED = CfgNode(
        {
            "NUM_CHANNELS": 512,
            "MID_CHANNELS": 128,
            "DILATIONS": [2, 4, 6, 8],  # one residual block each, >= 1; [] is the projector alone
            "NORM": "BN",
            "ACTIVATION": "ReLU",
        }
    )

    yolof.DECODER = CfgNode({"NAME": "ImplicitObjectnessDecoder"})
    yolof.DECODER.IMPLICIT_OBJECTNESS = CfgNode(
        {
            "NUM_CLS_CONVS": 2,
            "NUM_REG_CONVS": 4,
            "NORM": "BN",
            "ACTIVATION": "ReLU",
            "PRIOR_PROB": 0.01,
        }
    )

    yolof.MATCHER = CfgNode({"NAME": "UniformMatcher"})
    yolof.MATCHER.UNIFORM = CfgNode(
        {
            "TOPK": 4,  # nearest anchors, and again nearest predictions, per ground truth; >= 1
            "POS_IGNORE_IOU": 0.15,  # a pair is dropped below this IoU of anchor and ground truth
            "NEG_IGNORE_IOU": 0.7,  # background is ignored above this IoU with any ground truth
        }
    )

    yolof.LOSS = CfgNode({"NAME": "FocalGIoULoss"})
    yolof.LOSS.FOCAL_GIOU = CfgNode({"FOCAL_ALPHA": 0.25, "FOCAL_GAMMA": 2.0})

    # Scaling of (dx, dy, dw, dh); and how far, in pixels, a box's centre may lie from its anchor's.
    yolof.BOX_TRANSFORM = CfgNode({"WEIGHTS": (1.0, 1.0, 1.0, 1.0), "CENTER_CLAMP": 32})

    yolof.SCORE_THRESH_TEST = 0.05
    yolof.TOPK_CANDIDATES_TEST = 1000  # highest scores that enter the suppression
    yolof.NMS_THRESH_TEST = 0.6

    # Your own data in COCO format: a json and the folder that its file names are relative to. When
    # given, they replace DATASETS.TRAIN and TEST, and set the number of classes of the model.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""

    # Shift image and boxes by up to so many pixels, with this probability; 0 is off.
    cfg.INPUT.RANDOM_SHIFT = CfgNode({"PROB": 0.0, "MAX_PIXELS": 32})

    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0  # learning rate of the backbone, relative to BASE_LR
    cfg.SOLVER.AMP.PRECISION = (
        "fp16"  # or "bf16", which needs no loss scaling; read when SOLVER.AMP.ENABLED
    )
    cfg.TEST.BEST_METRIC = (
        "bbox/AP"  # the checkpoint with the highest value is kept as model_best.pth; "" is off
    )


def iter_keys(cfg: dict, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every leaf key of ``cfg``."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from iter_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def build_cfg(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Merge Detectron2's defaults, our keys, a config file and overrides; check; do not freeze.

    Args:
        config_file: path of a YAML file, with ``_BASE_`` if it has one; empty for none.
        overrides: ``KEY VALUE`` pairs, flat, as they stand on the command line.

    Raises:
        ConfigError: a file that cannot be read, an unknown or misplaced key, a value of the wrong
        kind. The message names every such key and the nearest right one.
    """
    cfg = get_cfg()
    add_yolof_config(cfg)
    defaults = cfg.clone()
    known = list(iter_keys(cfg))

    if len(overrides) % 2:
        raise ConfigError(
            "expected KEY VALUE pairs after the options, got an odd number of words: "
            + " ".join(overrides)
        )
    _raise_unknown(_read_keys(config_file) if config_file else [], known, config_file)
    _raise_unknown(overrides[::2], known, "the command line")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=True)
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, TypeError, AssertionError, SyntaxError) as error:
        raise ConfigError(f"{config_file or 'the command line'}: {_one_line(error)}") from error

    _raise_misplaced(cfg, defaults)
    validate_config(cfg)
    return cfg


def _read_keys(config_file: str) -> list[str]:
    try:
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=True)
    except (OSError, AssertionError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the config file {config_file!r}: {_one_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"cannot read the config file {config_file!r}: expected keys with values, "
            f"got a {type(content).__name__}"
        )
    return list(iter_keys(content))


def validate_config(cfg: CfgNode) -> None:
    """Check the values that no part checks for itself.

    Raises:
        ConfigError: an impossible value; the message names the key.
    """
    if cfg.SOLVER.AMP.PRECISION not in ("fp16", "bf16"):
        raise ConfigError(
            f"SOLVER.AMP.PRECISION must be 'fp16' or 'bf16', got {cfg.SOLVER.AMP.PRECISION!r}"
        )
    if not 0 <= cfg.INPUT.RANDOM_SHIFT.PROB <= 1:
        raise ConfigError(
            f"INPUT.RANDOM_SHIFT.PROB must lie in [0, 1], got {cfg.INPUT.RANDOM_SHIFT.PROB}"
        )
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        known = sorted(name for name, _ in META_ARCH_REGISTRY)
        near = difflib.get_close_matches(cfg.MODEL.META_ARCHITECTURE, known, 1, cutoff=0)[0]
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which is not registered; "
            f"did you mean {near!r}?"
        )


def _raise_unknown(written: Sequence[str], known: Sequence[str], where: str) -> None:
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    unknown = [key for key in written if key not in known and key not in ("_BASE_", *nodes)]
    if unknown:
        hints = "; ".join(f"{key} (did you mean {nearest_key(key, known)}?)" for key in unknown)
        raise ConfigError(f"{where}: no such config key: {hints}")


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The known key closest to ``key``: the same last name elsewhere first, then spelling."""
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == leaf]
    similar_leaf = difflib.get_close_matches(
        leaf, {name.rsplit(".", 1)[-1] for name in known}, 1, cutoff=0.8
    )
    if not same_leaf and similar_leaf:
        same_leaf = [
            candidate for candidate in known if candidate.rsplit(".", 1)[-1] == similar_leaf[0]
        ]
    return difflib.get_close_matches(key, same_leaf or known, 1, cutoff=0)[0]


_OTHER_MODELS = ("RETINANET", "RPN", "PROPOSAL_GENERATOR", "SEM_SEG_HEAD", "PANOPTIC_FPN", "ROI_")


def _raise_misplaced(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse values set for a model that is not being built: they would be ignored in silence."""
    is_yolof = cfg.MODEL.META_ARCHITECTURE == "YOLOF"
    foreign = tuple(f"MODEL.{name}" for name in (_OTHER_MODELS if is_yolof else ("YOLOF.",)))
    changed = [
        key
        for key in iter_keys(cfg)
        if key.startswith(foreign) and _get(cfg, key) != _get(defaults, key)
    ]
    # The class count is set for all models alike when it is read from the data, and so stands in
    # saved configs.
    misplaced = [
        key
        for key in changed
        if not (key.endswith("NUM_CLASSES") and _get(cfg, key) == str(num_classes(cfg)))
    ]
    if misplaced:
        if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":  # no hints at the keys of two-stage models
            foreign += tuple(f"MODEL.{name}" for name in _OTHER_MODELS if name != "RETINANET")
        own = [key for key in iter_keys(cfg) if not key.startswith(foreign)]
        hints = "; ".join(f"{key} (did you mean {nearest_key(key, own)}?)" for key in misplaced)
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which does not read {hints}"
        )


def num_classes(cfg: CfgNode) -> int:
    """Number of classes of the model that ``cfg`` builds."""
    node = {"YOLOF": cfg.MODEL.YOLOF, "RetinaNet": cfg.MODEL.RETINANET}.get(
        cfg.MODEL.META_ARCHITECTURE
    )
    return (node or cfg.MODEL.ROI_HEADS).NUM_CLASSES


def _get(cfg: CfgNode, key: str) -> str:
    value = functools.reduce(lambda node, name: node[name], key.split("."), cfg)
    return json.dumps(value)  # nested tuples become lists when a config is saved and read again


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
