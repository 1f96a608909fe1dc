from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from tests.conformance.slots import NoPart, SlotTests, breaks
from yolof_d2.modeling import Decoder


class Sound(Decoder):
    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        super().__init__()
        self.num_classes = cfg.MODEL.YOLOF.NUM_CLASSES
        self.tower = nn.Sequential(
            nn.Conv2d(input_shape.channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, num_anchors * (self.num_classes + 4), 3, padding=1),
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.in_order(self.tower(feature).float()))

    def in_order(self, output: Tensor) -> Tensor:
        """(N, A * (K + 4), H, W) to (N, H, W, A, K + 4)."""
        num_images, _, height, width = output.shape
        output = output.view(num_images, -1, self.num_classes + 4, height, width)
        return output.permute(0, 3, 4, 1, 2)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        output = output.flatten(1, 3)
        return output[..., : self.num_classes], output[..., self.num_classes :]


forward = breaks(Sound, "forward")
in_order = breaks(Sound, "in_order")
stays_in_half = forward(lambda self, sound, x: self.split(self.in_order(self.tower(x))))


class TestDecoder(SlotTests):
    slot = "decoder"
    sound = [Sound]
    broken = {
        "is_a_decoder": {"it is a NoPart; wanted a Decoder": NoPart},
        "each_anchor_gets_its_outputs": {
            "returned a Tensor; wanted": forward(lambda _, sound, x: torch.cat(sound(x), dim=-1)),
            "logits are torch.float32 of shape [1, 1, 3, 3] for 1 maps of 1 x 1 cells, A = 3 "
            "and K = 3; wanted float32 of shape [1, 3, 3]": forward(
                lambda _, sound, x: tuple(value[:, None] for value in sound(x))
            ),
            "shape [1, 3, 4] for": forward(lambda _, sound, x: sound(x)[::-1]),
            "are torch.float64": forward(lambda _, sound, x: tuple(v.double() for v in sound(x))),
        },
        "one_class_and_one_anchor_keep_their_dimensions": {
            "shape [2, 117]": forward(lambda _, sound, x: (sound(x)[0].squeeze(-1), sound(x)[1]))
        },
        "anchors_come_in_the_order_of_the_generator": {
            "depend most on (7, 10); wanted that they depend most on (1, 10)": in_order(
                lambda _, sound, x: sound(x).permute(0, 3, 1, 2, 4)
            ),  # anchors first
            "at the place of (1, 1) in the order (H, W, A) look at none of them": in_order(
                lambda _, sound, x: sound(x).transpose(1, 2)
            ),  # width first
        },
        "works_under_bfloat16_autocast": {
            "logits is torch.bfloat16 under torch.bfloat16 autocast": stays_in_half
        },
        "works_under_float16_autocast": {"wanted float32 always": stays_in_half},
    }
