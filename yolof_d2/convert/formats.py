"""Names of weights in other projects, as tables that are read in both directions."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from yolof_d2.errors import UserError

Weights = Mapping[str, Tensor]
Rules = Sequence[tuple[str, str]]

_NUMBER = re.compile(r"\{(\d*)(\w)(?:\+(\d+))?\}")  # {n}, {n+1}, {3n}, {3n+1}


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
    pattern = pattern.replace(".", r"\.").replace("*", "(?P<rest>.+)")
    return re.compile(_NUMBER.sub(r"(?P<\2>\\d+)", pattern))


def translate(name: str, rules: Rules) -> str | None:
    """Rename by the first rule that fits; None if there is none.

    A rule is a pair (old, new). ``*`` stands for any ending. ``{n}`` stands for a number, and
    ``{3n+1}`` for 1, 4, 7, ... where ``{n}`` on the other side counts 0, 1, 2, ...
    """
    for old, new in rules:
        fields = _read_fields(name, old)
        if fields is not None:
            return _fill_in(new, fields)
    return None


def _read_fields(name: str, pattern: str) -> dict[str, str] | None:
    match = _compile(pattern).fullmatch(name)
    if match is None:
        return None
    fields = match.groupdict()
    for factor, letter, offset in _NUMBER.findall(pattern):
        number, rest = divmod(int(fields[letter]) - int(offset or 0), int(factor or 1))
        if rest or number < 0:
            return None
        fields[letter] = str(number)
    return fields


def _fill_in(template: str, fields: Mapping[str, str]) -> str:
    def number(found: re.Match[str]) -> str:
        return str(int(found[1] or 1) * int(fields[found[2]]) + int(found[3] or 0))

    return _NUMBER.sub(number, template).replace("*", fields.get("rest", ""))


@dataclass(frozen=True)
class Format:
    """The weights of another project.

    Attributes:
        rules: pairs (theirs, ours), see :func:`translate`.
        left_out: pairs (regular expression, reason) for names of theirs to leave out.
        ours_left_out: the same for names of ours.
        scope: the names in a model of ours that have a counterpart; group 1 is the name without
            what is in front of it.
        required: names that every model of theirs has.
        biases: pairs (bias of a convolution, running mean of the norm after it), names of ours; in
            theirs these convolutions have no bias.
        config: keys of our config with which the weights mean the same here and there.
        note: a remark on ``config``.
        backbone_only: they are a ResNet's; converted names have no prefix.
        wrapped: their files hold the weights under ``state_dict``.
    """

    rules: Rules
    left_out: Rules = ()
    ours_left_out: Rules = ()
    scope: str = "(.+)"
    required: Sequence[str] = ()
    biases: Rules = ()
    config: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    backbone_only: bool = False
    wrapped: bool = False


_RESNET_RULES = (
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.*", "stem.conv1.norm.*"),
    ("layer{n}.{b}.conv{c}.weight", "res{n+1}.{b}.conv{c}.weight"),
    ("layer{n}.{b}.bn{c}.*", "res{n+1}.{b}.conv{c}.norm.*"),
    ("layer{n}.{b}.downsample.0.weight", "res{n+1}.{b}.shortcut.weight"),
    ("layer{n}.{b}.downsample.1.*", "res{n+1}.{b}.shortcut.norm.*"),
)

_RESNET = Format(
    rules=_RESNET_RULES,
    left_out=((r"fc\..+", "the ImageNet classifier"),),
    scope=r"(?:.+\.)?((?:stem|res[2-5])\..+)",
    config={
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "INPUT.FORMAT": "RGB",
    },
    backbone_only=True,
)

_BLOCK = "encoder.dilated_encoder_blocks.{b}.conv{c}"
_PROJECTOR = ("lateral_conv", "lateral_norm", "fpn_conv", "fpn_norm")
_PREDICTORS = ("cls_score", "bbox_pred", "object_pred")
_MMDET = Format(
    rules=(
        *((f"backbone.{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET_RULES),
        *((f"neck.{layer}.*", f"encoder.{layer}.*") for layer in _PROJECTOR),
        ("neck.dilated_encoder_blocks.{b}.conv{c}.conv.*", f"{_BLOCK}.0.*"),
        ("neck.dilated_encoder_blocks.{b}.conv{c}.bn.*", f"{_BLOCK}.1.*"),
        ("bbox_head.cls_subnet.{i}.conv.*", "decoder.cls_subnet.{3i}.*"),
        ("bbox_head.cls_subnet.{i}.bn.*", "decoder.cls_subnet.{3i+1}.*"),
        ("bbox_head.bbox_subnet.{i}.conv.*", "decoder.bbox_subnet.{3i}.*"),
        ("bbox_head.bbox_subnet.{i}.bn.*", "decoder.bbox_subnet.{3i+1}.*"),
        *((f"bbox_head.{layer}.*", f"decoder.{layer}.*") for layer in _PREDICTORS),
        ("data_preprocessor.mean", "pixel_mean"),
        ("data_preprocessor.std", "pixel_std"),
    ),
    ours_left_out=((r"pixel_(mean|std)", "mmdet has it in its config"),),
    required=[f"bbox_head.{layer}.weight" for layer in _PREDICTORS],
    biases=(
        (f"{_BLOCK}.0.bias", f"{_BLOCK}.1.running_mean"),
        ("decoder.cls_subnet.{3i}.bias", "decoder.cls_subnet.{3i+1}.running_mean"),
        ("decoder.bbox_subnet.{3i}.bias", "decoder.bbox_subnet.{3i+1}.running_mean"),
    ),
    config={
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "INPUT.FORMAT": "BGR",
    },
    note="for style='caffe', as in mmdet's YOLOF; anchor sizes and dilations are not in weights",
    wrapped=True,
)

# The public Detectron2 YOLOF has these names too.
_CVPODS = Format(
    rules=(("*", "*"),),
    left_out=((r"anchor_generator\..+", "computed from the config"),),
    note="anchor sizes, dilations and STRIDE_IN_1X1 are not in weights",
)

FORMATS: Mapping[str, Format] = {
    "mmdet": _MMDET,
    "cvpods": _CVPODS,
    "torchvision": _RESNET,
    "timm": _RESNET,
}


def detect_format(names: Collection[str]) -> str:
    """Return the name in ``FORMATS`` of the project with such names of weights.

    Raises:
        UserError: none of them has.
    """
    for name, typical in (
        ("mmdet", r"(neck|bbox_head)\..+"),
        ("cvpods", r"decoder\.(cls_score|object_pred)\.weight"),
        ("torchvision", r"layer1\.0\.conv1\.weight"),
    ):
        if any(re.fullmatch(typical, candidate) for candidate in names):
            return name
    shown = ", ".join(sorted(names)[:3])
    raise UserError(
        f"the names ({shown}, ...) are those of no known format; known are {', '.join(FORMATS)} "
        "(choose with --from)"
    )


@dataclass(frozen=True)
class Conversion:
    """Renamed weights, and the fate of each name of the source.

    Attributes:
        weights: by new name.
        origin: name in the source of each new name.
        left_out: source names left out on purpose, each with the reason.
        not_placed: source names without a place, in the order of the source.
        added: new names without a source.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    not_placed: list[str] = field(default_factory=list)
    added: Sequence[str] = ()

    def place(self, name: str, new_name: str, tensor: Tensor) -> None:
        """Add a weight under a new name."""
        self.weights[new_name] = tensor
        self.origin[new_name] = name


def convert_to_ours(source: Weights, layout: Format) -> Conversion:
    """Rename weights of another project; biases that only we have become zero."""
    renamed = _rename(source, layout.rules, layout.left_out)
    zeros = {}
    for name, weight in renamed.weights.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        if bias not in renamed.weights and translate(bias, layout.biases):
            zeros[bias] = weight.new_zeros(weight.shape[0])
    return replace(renamed, weights={**renamed.weights, **zeros}, added=tuple(zeros))


def convert_to_theirs(source: Weights, layout: Format) -> Conversion:
    """Rename weights of ours for another project.

    A bias that they have no place for is subtracted from the running mean of the norm after it: the
    same in inference, and without effect in training, where the batch's mean is subtracted.

    Args:
        source: named as :func:`select` gives them.
        layout: the wanted format.

    Raises:
        UserError: there is such a bias, but no running mean; or their model has other weights.
    """
    weights, folded = dict(source), {}
    for bias in source:
        mean = translate(bias, layout.biases)
        if mean is None:
            continue
        if mean not in weights:
            raise UserError(f"{bias} has no counterpart there without a batch norm ({mean})")
        weights[mean] = weights[mean] - weights.pop(bias)
        folded[bias] = "convolution biases, now part of the running mean of the norm after them"
    backwards = [(ours, theirs) for theirs, ours in layout.rules]
    renamed = _rename(weights, backwards, layout.ours_left_out)
    absent = [name for name in layout.required if name not in renamed.weights]
    if renamed.not_placed or absent:
        raise UserError(
            "this model has other parts than theirs; only here: "
            f"{show(renamed.not_placed) or 'nothing'}; only there: {show(absent) or 'nothing'}"
        )
    return replace(renamed, left_out={**renamed.left_out, **folded})


def select(source: Weights, layout: Format) -> Conversion:
    """Take the weights of a model of ours that lie in the scope of ``layout``, without prefix."""
    result = Conversion()
    for name, tensor in source.items():
        match = re.fullmatch(layout.scope, name)
        if match is None:
            result.left_out[name] = "no part of a ResNet"
        elif match[1] in result.weights:
            result.not_placed.append(name)
        else:
            result.place(name, match[1], tensor)
    return result


def show(names: Sequence[str], limit: int = 20) -> str:
    """Return the first ``limit`` names in one line."""
    more = f", ... and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _rename(source: Weights, rules: Rules, left_out: Rules) -> Conversion:
    result = Conversion()
    for name, tensor in source.items():
        reason = next((why for left, why in left_out if re.fullmatch(left, name)), None)
        new_name = translate(name, rules)
        if reason is not None:
            result.left_out[name] = reason
        elif new_name is None:
            result.not_placed.append(name)
        else:
            result.place(name, new_name, tensor)
    return result
