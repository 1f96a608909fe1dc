"""Checks of encoders; see :class:`yolof_d2.modeling.Encoder`."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from yolof_d2.modeling import Encoder, build_encoder

from .expectations import expect, expect_kind
from .modules import ModuleSubject

INPUT_SHAPE = ShapeSpec(channels=64, stride=32)


class EncoderSubject(ModuleSubject):
    def build(self) -> Encoder:
        return build_encoder(self.cfg, INPUT_SHAPE)

    def make_input(self, part: nn.Module, batch: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(batch, INPUT_SHAPE.channels, *size)

    def outputs(self, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
        output = part(x)
        expect_kind(output, Tensor, "forward() returned")
        return {"output": output}


def is_an_encoder(subject: EncoderSubject) -> None:
    """It derives from :class:`Encoder`, and declares channels and stride."""
    part = subject.build()
    expect_kind(part, Encoder)
    shape = part.output_shape()
    expect_kind(shape, ShapeSpec, "output_shape() returned")
    for name in ("channels", "stride"):
        value = getattr(shape, name)
        expect(
            isinstance(value, int) and value > 0,
            f"output_shape().{name} is {value!r}; wanted a positive whole number",
        )


def output_has_the_declared_shape(subject: EncoderSubject) -> None:
    """Channels and stride hold at every size of map and batch."""
    part = subject.build().eval()
    declared = part.output_shape()
    for size in subject.sizes:
        for batch in (1, 3):
            with torch.no_grad():
                output = subject.outputs(part, subject.make_input(part, batch, size))["output"]
            got = list(output.shape)
            expect(
                len(got) == 4 and got[:2] == [batch, declared.channels],
                f"of {batch} maps of {size[0]} x {size[1]} cells the output has shape {got}; "
                f"wanted [{batch}, {declared.channels}, H, W], as output_shape() says",
            )
            expect_stride(got[2:], size, INPUT_SHAPE.stride, declared.stride)


def expect_stride(got: list[int], size: tuple[int, int], stride: int, declared_stride: int) -> None:
    """Raise unless a map of ``got`` cells can have ``declared_stride``.

    Where ``size`` cells of ``stride`` pixels are no whole number of new cells, rounding down or up
    will do, but not to none.
    """
    for cells, before in zip(got, size, strict=True):
        exact = before * stride / declared_stride
        expect(
            cells >= 1 and abs(cells - exact) < 1,
            f"{size[0]} x {size[1]} cells of {stride} pixels became {got[0]} x {got[1]}; "
            f"the declared stride of {declared_stride} gives {exact:g} in place of {cells}",
        )
