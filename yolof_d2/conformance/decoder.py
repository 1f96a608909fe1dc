"""Checks of decoders; see :class:`yolof_d2.modeling.Decoder`."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from yolof_d2.modeling import Decoder, build_decoder

from .expectations import expect, expect_kind
from .modules import ModuleSubject, livened

INPUT_SHAPE = ShapeSpec(channels=32, stride=32)


class DecoderSubject(ModuleSubject):
    num_anchors = 3
    promises_float32 = True

    def build(self) -> Decoder:
        return build_decoder(self.cfg, INPUT_SHAPE, self.num_anchors)

    def make_input(self, part: nn.Module, batch: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(batch, INPUT_SHAPE.channels, *size)

    def outputs(self, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
        output = part(x)
        expect(
            isinstance(output, tuple)
            and len(output) == 2
            and all(isinstance(value, Tensor) for value in output),
            f"forward() returned a {type(output).__name__}; wanted the tensors (logits, deltas)",
        )
        return dict(zip(("logits", "deltas"), output, strict=True))


def is_a_decoder(subject: DecoderSubject) -> None:
    """It derives from :class:`Decoder`."""
    expect_kind(subject.build(), Decoder)


def each_anchor_gets_its_outputs(subject: DecoderSubject) -> None:
    """Logits (N, R, K) and deltas (N, R, 4), float32, at every size of map and batch."""
    for batch in (1, 3):
        for size in subject.sizes:
            _expect_shapes(subject, batch, size)


def one_class_and_one_anchor_keep_their_dimensions(subject: DecoderSubject) -> None:
    """K = 1 and A = 1 are no special case."""
    single = type(subject)(subject.cfg.clone())
    single.cfg.MODEL.YOLOF.NUM_CLASSES = 1
    single.num_anchors = 1
    _expect_shapes(single, 2, subject.size)


def _expect_shapes(subject: DecoderSubject, batch: int, size: tuple[int, int]) -> None:
    part = subject.build().eval()
    num_classes = subject.cfg.MODEL.YOLOF.NUM_CLASSES
    num_anchors = size[0] * size[1] * subject.num_anchors
    with torch.no_grad():
        outputs = subject.outputs(part, subject.make_input(part, batch, size))
    for name, last in (("logits", num_classes), ("deltas", 4)):
        value = outputs[name]
        wanted = [batch, num_anchors, last]
        expect(
            list(value.shape) == wanted and value.dtype == torch.float32,
            f"{name} are {value.dtype} of shape {list(value.shape)} for {batch} maps of "
            f"{size[0]} x {size[1]} cells, A = {subject.num_anchors} and K = {num_classes}; "
            f"wanted float32 of shape {wanted}",
        )


def anchors_come_in_the_order_of_the_generator(subject: DecoderSubject) -> None:
    """(H, W, A): the gradient of a cell's outputs is largest at that cell. Can be waived.

    Only cells far apart are compared: a large or slightly shifted receptive field is no fault.
    """
    part = livened(subject.build())
    height, width = 9, 12
    cells = [(y, x) for y in (1, height - 2) for x in (1, width - 2)]
    feature = subject.make_input(part, 1, (height, width)).requires_grad_()
    outputs = subject.outputs(part, feature)
    for y, x in cells:
        first = (y * width + x) * subject.num_anchors
        chosen = torch.cat(list(outputs.values()), dim=-1)[0, first : first + subject.num_anchors]
        weights = torch.randn(chosen.shape)
        (grad,) = torch.autograd.grad(chosen, feature, weights, retain_graph=True)
        strength = {cell: float(grad[0, :, cell[0], cell[1]].norm()) for cell in cells}
        strongest = max(cells, key=lambda cell: strength[cell])
        seen = f"depend most on {strongest}" if strength[strongest] else "look at none of them"
        expect(
            strongest == (y, x) and strength[strongest] > 0,
            f"of the cells {cells}, the outputs at the place of {(y, x)} in the order (H, W, A) "
            f"{seen}; wanted that they depend most on {(y, x)}",
        )
