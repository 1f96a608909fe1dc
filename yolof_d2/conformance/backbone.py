"""Checks of backbones; see Detectron2's :class:`Backbone`."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from yolof_d2.modeling.registry import get_part

from .encoder import expect_stride
from .expectations import expect, expect_kind
from .modules import ModuleSubject


class BackboneSubject(ModuleSubject):
    """Sizes are those of the images, in pixels."""

    sizes = ((32, 32), (33, 65), (64, 96), (97, 131))
    size = (64, 96)
    other_size = (97, 131)
    passes_gradients = False  # nothing learns before it

    def build(self) -> Backbone:
        name = self.cfg.MODEL.BACKBONE.NAME
        builder = get_part(BACKBONE_REGISTRY, name, "MODEL.BACKBONE.NAME")
        return builder(self.cfg, ShapeSpec(channels=len(self.cfg.MODEL.PIXEL_MEAN)))

    def make_input(self, part: Any, batch: int, size: tuple[int, int]) -> Tensor:
        """Normalised images, padded as the model pads them."""
        images = list(torch.randn(batch, len(self.cfg.MODEL.PIXEL_MEAN), *size))
        padding = (part.size_divisibility, 0.0, part.padding_constraints)
        return ImageList.from_tensors(images, *padding).tensor

    def outputs(self, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
        features = part(x)
        expect_kind(features, dict, "forward() returned")
        return features


def is_a_backbone(subject: BackboneSubject) -> None:
    """It derives from Detectron2's :class:`Backbone`, and declares each feature."""
    part = subject.build()
    expect_kind(part, Backbone)
    shapes = part.output_shape()
    expect(
        bool(shapes) and all(shape.channels and shape.stride for shape in shapes.values()),
        f"output_shape() is {shapes}; wanted channels and stride of each feature",
    )


def features_have_the_declared_shapes(subject: BackboneSubject) -> None:
    """Names, channels and strides hold at every size of image and batch."""
    part = subject.build().eval()
    declared = part.output_shape()
    for size in subject.sizes:
        for batch in (1, 3):
            images = subject.make_input(part, batch, size)
            padded = (images.shape[-2], images.shape[-1])
            with torch.no_grad():
                features = subject.outputs(part, images)
            expect(
                features.keys() == declared.keys(),
                f"forward() gives {sorted(features)}; output_shape() says {sorted(declared)}",
            )
            for name, feature in features.items():
                got = list(feature.shape)
                expect(
                    len(got) == 4 and got[:2] == [batch, declared[name].channels],
                    f"{name} of {batch} images of {size[0]} x {size[1]} pixels has shape {got}; "
                    f"wanted [{batch}, {declared[name].channels}, H, W], as output_shape() says",
                )
                expect_stride(got[2:], padded, 1, declared[name].stride)
