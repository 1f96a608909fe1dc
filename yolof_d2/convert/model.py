"""Find the config of a model from its weights, and fit weights to the model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yolof_d2.config import build_cfg
from yolof_d2.errors import UserError
from yolof_d2.modeling import build_model

from .formats import FORMATS, Conversion, Rules, Weights, select, show, translate

# (three convolutions per block, blocks per stage): MODEL.RESNETS.DEPTH
_DEPTHS: Mapping[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_PLAIN_YOLOF = {
    "MODEL.META_ARCHITECTURE": "YOLOF",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
}
UNKNOWN_VALUES = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.YOLOF.ENCODER.DILATED.DILATIONS")
# Detectron2 itself fills these in, from the config and with zero.
_OPTIONAL = re.compile(r"pixel_mean|pixel_std|.+\.num_batches_tracked")


def deduce_config(weights: Weights, *, resnet_only: bool) -> dict[str, Any]:
    """Deduce the config keys of a YOLOF, or of its ResNet alone, from weights under our names.

    Of the keys in ``UNKNOWN_VALUES`` only the length is known. Strides and the channel order of the
    input are not in the weights.

    Raises:
        UserError: a weight that is needed for it is missing, or no such model can be built.
    """
    if resnet_only:
        return _deduce_resnet(weights)
    return {
        **_deduce_resnet(select(weights, FORMATS["torchvision"]).weights),
        **_deduce_encoder_and_decoder(weights),
    }


def _deduce_resnet(weights: Weights) -> dict[str, Any]:
    blocks = tuple(
        len({name.split(".")[1] for name in weights if name.startswith(f"res{stage}.")})
        for stage in (2, 3, 4, 5)
    )
    bottleneck = "res2.0.conv3.weight" in weights
    if (bottleneck, blocks) not in _DEPTHS:
        raise UserError(
            f"no ResNet of Detectron2's has {blocks} blocks in its stages; if this is another "
            "model of ours, name its config with --config-file"
        )
    inner = _shape(weights, "res2.0.conv2.weight")
    outer = _shape(weights, f"res2.0.conv{3 if bottleneck else 2}.weight")
    return {
        "MODEL.RESNETS.DEPTH": _DEPTHS[bottleneck, blocks],
        "MODEL.RESNETS.NUM_GROUPS": inner[0] // inner[1],
        "MODEL.RESNETS.WIDTH_PER_GROUP": inner[1],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": _shape(weights, "stem.conv1.weight")[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": outer[0],
    }


def _deduce_encoder_and_decoder(weights: Weights) -> dict[str, Any]:
    def count(layers: str) -> int:
        # By the highest number in any name, so that a layer with a weight missing counts too.
        matches = [re.match(rf"{layers}\.(\d+)\.", name) for name in weights]
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    num_blocks = count("encoder.dilated_encoder_blocks")
    num_anchors = _shape(weights, "decoder.object_pred.weight")[0]
    encoder = "MODEL.YOLOF.ENCODER.DILATED"
    decoder = "MODEL.YOLOF.DECODER.IMPLICIT_OBJECTNESS"
    deduced = {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32] * num_anchors],
        "MODEL.YOLOF.NUM_CLASSES": _shape(weights, "decoder.cls_score.weight")[0] // num_anchors,
        f"{encoder}.NUM_CHANNELS": _shape(weights, "encoder.lateral_conv.weight")[0],
        f"{encoder}.DILATIONS": [1] * num_blocks,
        # Convolution, norm and activation of each have a number.
        f"{decoder}.NUM_CLS_CONVS": math.ceil(count("decoder.cls_subnet") / 3),
        f"{decoder}.NUM_REG_CONVS": math.ceil(count("decoder.bbox_subnet") / 3),
    }
    if num_blocks:
        inner = _shape(weights, "encoder.dilated_encoder_blocks.0.conv1.0.weight")
        deduced[f"{encoder}.MID_CHANNELS"] = inner[0]
    return deduced


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(f"{name} is missing, which tells how wide the model is")
    return tuple(weights[name].shape)


def build_expected(
    config_file: str, overrides: Sequence[str], deduced: Mapping[str, Any]
) -> Weights:
    """Build the model of a config, and return its initial weights.

    Args:
        config_file: its path; empty for a YOLOF with a ResNet and the ``deduced`` keys.
        overrides: ``KEY VALUE`` pairs, flat, which win over both.
        deduced: from :func:`deduce_config`.

    Raises:
        ConfigError: the config is wrong.
    """
    if not config_file:
        keys = {**_PLAIN_YOLOF, **deduced}
        overrides = [*(str(word) for item in keys.items() for word in item), *overrides]
    cfg = build_cfg(config_file, overrides)
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).state_dict()


def fit(conversion: Conversion, expected: Weights, to_source: Rules) -> Conversion:
    """Keep the weights that the model has a place for, if it lacks none.

    Args:
        conversion: weights under our names.
        expected: weights of the model.
        to_source: rules from our names to those in the source, for the message.

    Raises:
        UserError: a weight of the model is missing or has another shape.
    """
    weights = conversion.weights
    missing = [name for name in expected if name not in weights and not _OPTIONAL.fullmatch(name)]
    misshaped = [
        f"{name} is {_text(weights, name)}, the model's is {_text(expected, name)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    if missing or misshaped:
        names = [(name, translate(name, to_source) or name) for name in missing]
        named = [ours if ours == theirs else f"{ours} ({theirs})" for ours, theirs in names]
        lines = ["the weights do not fit the model; nothing was written"]
        lines += [f"missing: {show(named)}"] * bool(missing)
        lines += [f"of another shape: {show(misshaped)}"] * bool(misshaped)
        raise UserError("\n  ".join(lines))

    left_out, not_placed = dict(conversion.left_out), list(conversion.not_placed)
    for name, source in conversion.origin.items():
        if name.endswith(".num_batches_tracked") and name not in expected:
            left_out[source] = "batch counters, which frozen norms have not"
        elif name not in expected:
            not_placed.append(source)
    return Conversion(
        {name: tensor for name, tensor in weights.items() if name in expected},
        {name: source for name, source in conversion.origin.items() if name in expected},
        left_out,
        not_placed,
        [name for name in conversion.added if name in expected],
    )


def _text(weights: Weights, name: str) -> str:
    shape = tuple(weights[name].shape)
    anchors = weights.get("decoder.object_pred.weight")
    if not name.startswith("decoder.cls_score.") or anchors is None:
        return str(shape)
    return f"{shape} ({shape[0] // anchors.shape[0]} classes)"
