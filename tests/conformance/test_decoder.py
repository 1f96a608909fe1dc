from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from tests.conformance.slots import SlotTests, alters, breaks
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


class NoDecoder(nn.Module):
    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        super().__init__()


forward = breaks(Sound, "forward")
returns = alters(Sound, "forward")
in_order = alters(Sound, "in_order")
stays_in_half = forward(lambda self, sound, x: self.split(self.in_order(self.tower(x))))


class TestDecoder(SlotTests):
    slot = "decoder"
    sound = [Sound]
    broken = {
        "is_a_decoder": {"it is a NoDecoder; wanted a Decoder": NoDecoder},
        "each_anchor_gets_its_outputs": {
            "returned a Tensor; wanted the": returns(lambda y: torch.cat(y, dim=-1)),
            "logits are torch.float32 of shape [1, 1, 3, 3] for 1 maps of 1 x 1 cells, A = 3 "
            "and K = 3; wanted float32 of shape [1, 3, 3]": returns(lambda y: (y[0][None], y[1])),
            "shape [1, 3, 4] for": returns(lambda y: y[::-1]),
            "logits are torch.float64": returns(lambda y: (y[0].double(), y[1])),
        },
        "one_class_and_one_anchor_keep_their_dimensions": {
            "shape [2, 117] for": returns(lambda y: (y[0].squeeze(-1), y[1]))
        },
        "anchors_come_in_the_order_of_the_generator": {
            "depend most on (7, 10); wanted that they depend most on (1, 10)": in_order(
                lambda y: y.permute(0, 3, 1, 2, 4)  # anchors first
            ),
            "of (1, 1) in the order (H, W, A) look at none": in_order(
                lambda y: y.transpose(1, 2)  # width first
            ),
        },
        "works_under_bfloat16_autocast": {
            "logits is torch.bfloat16 under torch.bfloat16 autocast": stays_in_half
        },
        "works_under_float16_autocast": {"wanted float32 always": stays_in_half},
    }
