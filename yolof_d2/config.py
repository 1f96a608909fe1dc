"""Config keys: where they are born, and the check that what a user wrote makes sense."""

from __future__ import annotations

import ast
import difflib
import functools
import json
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from .errors import ConfigError
from .modeling.checks import check_backbone
from .plugins import load_plugins


def add_yolof_config(cfg: CfgNode) -> None:
    """Add every key of this project to ``cfg``; no existing key is touched.

    The values of ``MODEL.YOLOF`` are those of the published R50-C5 model. Each slot has a ``NAME``,
    and each part a node that only it reads. What can be derived is no key: channels and strides
    come from the backbone, the number of anchors from ``MODEL.ANCHOR_GENERATOR``, the number of
    blocks from the dilations.
    """
    # Files, folders or installed modules with parts of your own, imported before the model is
    # built; one that defines add_config(cfg) may add keys of its own there.
    cfg.PLUGINS = ()

    yolof = cfg.MODEL.YOLOF = CfgNode()
    yolof.NUM_CLASSES = 80  # set from the json when DATASETS.TRAIN_JSON or TEST_JSON is given

    # NORM is "BN", "SyncBN", "GN", "FrozenBN" or "" for none, here and below.
    yolof.ENCODER = CfgNode({"NAME": "DilatedEncoder"})
    yolof.ENCODER.DILATED = CfgNode(
        {
            "NUM_CHANNELS": 512,
            "MID_CHANNELS": 128,
            "DILATIONS": [2, 4, 6, 8],  # one residual block each, >= 1
            "SHORTCUT": True,  # the sum around each block; False leaves a plain chain
            "NORM": "BN",
            "ACTIVATION": "ReLU",  # or "LeakyReLU", slope 0.1
        }
    )
    yolof.ENCODER.PROJECTOR = CfgNode({"NUM_CHANNELS": 512, "NORM": "BN"})
    yolof.ENCODER.ASPP = CfgNode(
        {
            "NUM_CHANNELS": 256,  # of each branch and of the output
            "DILATIONS": [2, 4, 6],  # exactly three, the 3x3 branches beside 1x1 and pooling
            "NORM": "BN",
            "ACTIVATION": "ReLU",
        }
    )
    yolof.ENCODER.TRANSFORMER = CfgNode(
        {
            "NUM_CHANNELS": 256,  # divisible by 4 and by NUM_HEADS
            "NUM_LAYERS": 6,
            "NUM_HEADS": 8,
            "FEEDFORWARD_CHANNELS": 2048,
            "DROPOUT": 0.1,
        }
    )

    towers = {
        "NUM_SHARED_CONVS": 0,  # 3x3 convolutions before classification and regression part
        "NUM_CLS_CONVS": 2,
        "NUM_REG_CONVS": 4,
        "NORM": "BN",
        "ACTIVATION": "ReLU",
        "PRIOR_PROB": 0.01,  # score of each class before training, in (0, 1)
    }
    yolof.DECODER = CfgNode({"NAME": "ImplicitObjectnessDecoder"})
    yolof.DECODER.IMPLICIT_OBJECTNESS = CfgNode(dict(towers))
    yolof.DECODER.PLAIN = CfgNode(dict(towers))

    yolof.MATCHER = CfgNode({"NAME": "UniformMatcher"})
    yolof.MATCHER.UNIFORM = CfgNode(
        {
            "TOPK": 4,  # nearest of each kind of candidate, per ground truth; >= 1
            "CANDIDATES": ["predictions", "anchors"],  # or one of the two
            "POS_IGNORE_IOU": 0.15,  # a pair is dropped below this IoU of anchor and ground truth
            "NEG_IGNORE_IOU": 0.7,  # background is ignored above this IoU with any ground truth
        }
    )
    yolof.MATCHER.MAX_IOU = CfgNode(
        {
            "NEG_IOU": 0.4,  # background below it, ignored from it to POS_IOU
            "POS_IOU": 0.5,
            "ALLOW_LOW_QUALITY": True,  # a ground truth's best anchors are positive at any IoU
        }
    )
    yolof.MATCHER.TOPK_IOU = CfgNode({"TOPK": 4, "POS_IGNORE_IOU": 0.15, "NEG_IGNORE_IOU": 0.7})
    yolof.MATCHER.ATSS = CfgNode({"TOPK": 9})  # nearest cells per ground truth, all anchors of each
    yolof.MATCHER.HUNGARIAN = CfgNode({"CLS_WEIGHT": 2.0, "L1_WEIGHT": 5.0, "GIOU_WEIGHT": 2.0})
    yolof.MATCHER.SIMOTA = CfgNode(
        {
            "CENTER_RADIUS": 2.5,  # cells
            "CANDIDATE_TOPK": 10,  # highest IoUs whose sum is the number of positives
            "CLS_WEIGHT": 1.0,
            "IOU_WEIGHT": 3.0,
        }
    )

    yolof.LOSS = CfgNode({"NAME": "FocalBoxLoss"})
    yolof.LOSS.FOCAL_BOX = CfgNode(
        {
            "FOCAL_ALPHA": 0.25,
            "FOCAL_GAMMA": 2.0,
            "BBOX_REG_LOSS_TYPE": "giou",  # or "iou", "diou", "ciou", "l1" (of the deltas)
            "CLS_LOSS_WEIGHT": 1.0,
            "BBOX_REG_LOSS_WEIGHT": 1.0,
        }
    )

    # Scaling of (dx, dy, dw, dh); and how far, in pixels, a box's centre may lie from its anchor's.
    yolof.BOX_TRANSFORM = CfgNode({"WEIGHTS": (1.0, 1.0, 1.0, 1.0), "CENTER_CLAMP": 32})

    yolof.SCORE_THRESH_TEST = 0.05
    yolof.TOPK_CANDIDATES_TEST = 1000  # highest scores that enter the suppression
    yolof.NMS_THRESH_TEST = 0.6

    _add_backbone_config(cfg)
    _add_baseline_config(cfg)
    _add_input_config(cfg)

    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0  # learning rate of the backbone, relative to BASE_LR
    cfg.SOLVER.AMP.PRECISION = (
        "fp16"  # or "bf16", which needs no loss scaling; read when SOLVER.AMP.ENABLED
    )
    cfg.TEST.BEST_METRIC = (
        "bbox/AP"  # the checkpoint with the highest value is kept as model_best.pth; "" is off
    )
    # Ground truth beside predictions, of the first NUM_IMAGES images (0 is off): every PERIOD
    # iterations, where an evaluation falls on them, and after the last evaluation.
    cfg.TEST.PICTURES = CfgNode({"NUM_IMAGES": 4, "PERIOD": 0})
    # Logging to Weights & Biases. Its own environment variables (WANDB_MODE, ...) count too.
    cfg.WANDB = CfgNode(
        {
            "ENABLED": False,
            "PROJECT": "yolof_d2",  # or WANDB_PROJECT
            "ENTITY": "",  # user or team, or WANDB_ENTITY; "" is the key's own
            "TAGS": (),  # beside WANDB_TAGS
            "LOG_MODEL": False,  # upload the final weights as an artifact
        }
    )


def _add_backbone_config(cfg: CfgNode) -> None:
    # CSPDarkNet-53; MODEL.BACKBONE.FREEZE_AT counts as in ResNets: 1 the stem, 2 also res1, ...
    cfg.MODEL.CSPDARKNET = CfgNode(
        {
            "OUT_FEATURES": ["res5"],
            "STEM_OUT_CHANNELS": 32,  # doubled by each stage
            "NORM": "BN",
            "RES5_DILATION": 1,  # 2 keeps the stride of res5 at 16 (DC5)
        }
    )
    # Any model of the timm package that offers its features (build_timm_backbone).
    cfg.MODEL.TIMM = CfgNode(
        {
            "NAME": "resnet18",
            "PRETRAINED": False,  # download timm's weights; never when MODEL.WEIGHTS is given
            "OUT_FEATURES": ["res5"],  # res<n> has stride 2^n
            "NORM": "BN",  # or "FrozenBN"
        }
    )


def _add_baseline_config(cfg: CfgNode) -> None:
    # FCOS as Detectron2 has it, which offers it to Python configs only.
    cfg.MODEL.FCOS = CfgNode(
        {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "NORM": "GN",
            "PRIOR_PROB": 0.01,
            "CENTER_SAMPLING_RADIUS": 1.5,  # strides
            "FOCAL_LOSS_ALPHA": 0.25,
            "FOCAL_LOSS_GAMMA": 2.0,
            "SCORE_THRESH_TEST": 0.2,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.6,
        }
    )


def _add_input_config(cfg: CfgNode) -> None:
    # Your own data in COCO format: a json and the folder that its file names are relative to. When
    # given, they replace DATASETS.TRAIN and TEST, and set the number of classes of the model.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""

    # In the order of their use; each is off as it stands here.
    # Four images in one, with this probability: (height, width) of the result, and where the four
    # meet, as a share of them.
    cfg.INPUT.MOSAIC = CfgNode({"PROB": 0.0, "SIZE": (640, 640), "CENTER_RANGE": (0.2, 0.8)})
    # Move each side of the image in or out by up to this share of its length.
    cfg.INPUT.JITTER_CROP = CfgNode({"RATIO": 0.0})
    # Resize to (height, width) whatever the aspect ratio, in place of MIN_SIZE_*; () is off. In
    # training both are multiplied by one number from SCALE_JITTER.
    cfg.INPUT.FIXED_SIZE = CfgNode({"TRAIN": (), "TEST": (), "SCALE_JITTER": (1.0, 1.0)})
    # Up to HUE of the colour circle to either side, and up to these factors, or one over them.
    cfg.INPUT.COLOR_DISTORTION = CfgNode(
        {"PROB": 0.0, "HUE": 0.1, "SATURATION": 1.5, "EXPOSURE": 1.5}
    )
    # Shift image and boxes by up to so many pixels, with this probability.
    cfg.INPUT.RANDOM_SHIFT = CfgNode({"PROB": 0.0, "MAX_PIXELS": 32})


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
    if len(overrides) % 2:
        raise ConfigError(
            "expected KEY VALUE pairs after the options, got an odd number of words: "
            + " ".join(overrides)
        )
    content = _read_file(config_file) if config_file else {}
    cfg = _default_cfg(_named_plugins(content, overrides))
    defaults = cfg.clone()
    known = list(iter_keys(cfg))

    _raise_unknown(list(iter_keys(content)), known, config_file)
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


def restore_cfg(values: dict) -> CfgNode:
    """Rebuild a resolved config from its plain values, as :func:`json.loads` gives them.

    Args:
        values: every key with its value, nested as in the config; lists may stand for tuples.

    Raises:
        ConfigError: a key or the kind of a value is not what this version of the code has.
    """
    cfg = _default_cfg(_named_plugins(values, ()))
    try:
        cfg.merge_from_other_cfg(CfgNode(values))
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the saved config does not fit this version of the code: {_one_line(error)}"
        ) from error
    return cfg


def _default_cfg(plugins: Sequence[str]) -> CfgNode:
    cfg = get_cfg()
    add_yolof_config(cfg)
    for plugin in load_plugins(plugins):
        if hasattr(plugin, "add_config"):
            plugin.add_config(cfg)
    return cfg


def _read_file(config_file: str) -> dict:
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
    return content


def _named_plugins(content: dict, overrides: Sequence[str]) -> Sequence[str]:
    """The value of ``PLUGINS``, wanted before the rest is merged, as plug-ins may add keys."""
    named = dict(zip(overrides[::2], overrides[1::2], strict=True)).get("PLUGINS")
    entries = content.get("PLUGINS", ()) if named is None else named
    if not isinstance(entries, str):
        return entries
    try:  # "('a.py', 'b.py')", in a file as on the command line
        return ast.literal_eval(entries)
    except (SyntaxError, ValueError):
        return entries


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
    check_backbone(cfg)


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


# The nodes under MODEL that only some meta-architectures read. The class count is in the last one.
_TWO_STAGE = ("RPN", "PROPOSAL_GENERATOR", "SEM_SEG_HEAD", "PANOPTIC_FPN", "ROI_HEADS")
_OWN_NODES = {
    "YOLOF": ("YOLOF",),
    "RetinaNet": ("RETINANET",),
    "RetinaNetPlus": ("RETINANET",),
    "FCOS": ("FCOS",),
}


def _raise_misplaced(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse values set for a model that is not being built: they would be ignored in silence."""
    own_nodes = _OWN_NODES.get(cfg.MODEL.META_ARCHITECTURE, _TWO_STAGE)
    nodes = [*_TWO_STAGE, *sorted({node for own in _OWN_NODES.values() for node in own})]
    foreign = tuple(
        f"MODEL.{'ROI_' if node == 'ROI_HEADS' else node + '.'}"
        for node in nodes
        if node not in own_nodes
    )
    misplaced = [
        key
        for key in iter_keys(cfg)
        if key.startswith(foreign)
        and _get(cfg, key) != _get(defaults, key)
        # The class count is set for all models alike when it is read from the data, and so stands
        # in saved configs.
        and not (key.endswith("NUM_CLASSES") and _get(cfg, key) == str(num_classes(cfg)))
    ]
    if misplaced:
        own = [key for key in iter_keys(cfg) if not key.startswith(foreign)]
        hints = "; ".join(f"{key} (did you mean {nearest_key(key, own)}?)" for key in misplaced)
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which does not read {hints}"
        )


def num_classes_node(cfg: CfgNode) -> str:
    """Name of the node under ``MODEL`` that holds the class count of the model ``cfg`` builds."""
    return _OWN_NODES.get(cfg.MODEL.META_ARCHITECTURE, _TWO_STAGE)[-1]


def num_classes(cfg: CfgNode) -> int:
    """Number of classes of the model that ``cfg`` builds."""
    return cfg.MODEL[num_classes_node(cfg)].NUM_CLASSES


def set_num_classes(cfg: CfgNode, count: int) -> None:
    """Set the number of classes of every model alike, so that they can be compared."""
    for node in {nodes[-1] for nodes in (_TWO_STAGE, *_OWN_NODES.values())}:
        cfg.MODEL[node].NUM_CLASSES = count


def _get(cfg: CfgNode, key: str) -> str:
    value = functools.reduce(lambda node, name: node[name], key.split("."), cfg)
    return json.dumps(value)  # nested tuples become lists when a config is saved and read again


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
