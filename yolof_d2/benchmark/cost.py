"""Count parameters and multiply-adds by part, without running the model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from detectron2.config import CfgNode
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from yolof_d2.measure.model_cost import build_meta_model, count_multiply_adds, count_parameters
from yolof_d2.modeling.families import family_of_model

from .parts import marked


def describe_cost(cfg: CfgNode, size: tuple[int, int]) -> dict[str, Any]:
    """Count what MODEL_ZOO.md counts, part by part.

    Args:
        size: height and width of an image in pixels, before padding.

    Returns:
        ``padded_size``: height and width that the model sees; ``parameters``: ``trainable`` and
        ``frozen`` of each part; ``multiply_adds`` of each part, for one image; ``not_counted``:
        names of the other operators.

    Raises:
        ConfigError: the parts of the model are not known.
    """
    model = build_meta_model(cfg)
    padded = family_of_model(model).padded_size(model, size)
    multiply_adds, others = count_by_part(model, padded)
    counted = {"parameters": parameters_by_part(model), "multiply_adds": multiply_adds}
    return {"padded_size": list(padded), **counted, "not_counted": others}


def parameters_by_part(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters, ``trainable`` and ``frozen``, those of frozen norms included, by part."""
    parts = family_of_model(model).find_parts(model)

    def split(module: nn.Module) -> Counter[str]:
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return Counter(trainable=trainable, frozen=count_parameters(module) - trainable)

    whole, backbone, decoder = split(model), split(parts.backbone), split(parts.decoder)
    encoder = split(parts.encoder) if parts.encoder is not None else Counter()
    if parts.encoder is not None and parts.backbone in parts.encoder.modules():  # a pyramid
        encoder.subtract(backbone)
    counted = {"backbone": backbone, "encoder": encoder, "decoder": decoder}
    other = Counter(whole)
    for part in counted.values():
        other.subtract(part)
    return {
        name: {kind: part[kind] for kind in ("trainable", "frozen")}
        for name, part in {**counted, "other": other}.items()
    }


def count_by_part(model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, int], list[str]]:
    """Count multiply-adds of convolutions, linear layers and attention.

    Args:
        model: on the meta device, from :func:`~yolof_d2.measure.model_cost.build_meta_model`.
        size: height and width in pixels, padded.

    Returns:
        Multiply-adds by part, for one image; and names of the operators that are not counted.
    """
    at_mark: dict[str, int] = {"other": 0}
    counter = FlopCounterMode(display=False)

    def mark(part: str) -> None:
        before = sum(at_mark.values())
        at_mark[part] = at_mark.get(part, 0) + counter.get_total_flops() // 2 - before

    with _OperatorNames() as seen, counter, marked(model, mark):
        count_multiply_adds(model, size)
        mark("other")  # behind the decoder
    parts = ("backbone", "encoder", "decoder", "other")
    not_counted = sorted(str(operator) for operator in seen.operators - set(counter.flop_registry))
    return {part: at_mark.get(part, 0) for part in parts}, not_counted


class _OperatorNames(TorchDispatchMode):
    """Note which operators run, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            self.operators.add(func.overloadpacket)
        return func(*args, **kwargs or {})
