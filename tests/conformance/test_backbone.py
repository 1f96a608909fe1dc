from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance.slots import SlotTests, breaks


class Sound(Backbone):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()
        self.stem = nn.Conv2d(input_shape.channels, 8, 3, padding=1, stride=2)
        self.frozen = FrozenBatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.stem.requires_grad_(False)
        self._out_features = ["half", "quarter"]
        self._out_feature_channels = {"half": 8, "quarter": 8}
        self._out_feature_strides = {"half": 2, "quarter": 4}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        half = self.frozen(self.stem(images)).detach()  # frozen: no gradient for the images
        return {"half": half, "quarter": self.norm(self.conv(half))}


class NoBackbone(nn.Module):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()


class DeadStage(Sound):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.res6 = nn.Conv2d(8, 8, 1)


def quarter(**spec: int):
    """A part that declares this of one of its features."""
    return declares(lambda self, sound: {**sound(), "quarter": ShapeSpec(**spec)})


declares = breaks(Sound, "output_shape")
forward = breaks(Sound, "forward")


class TestBackbone(SlotTests):
    slot = "backbone"
    sound = [Sound]
    broken = {
        "is_a_backbone": {
            "it is a NoBackbone; wanted a Backbone": NoBackbone,
            "output_shape() is {}; wanted channels": declares(lambda *_: {}),
            "stride=None": quarter(channels=8),
        },
        "features_have_the_declared_shapes": {
            "gives ['half', 'res3']; output_shape() says ['half', 'quarter']": forward(
                lambda self, sound, x: {"half": x, "res3": sound(x)["quarter"]}
            ),
            "wanted [1, 9, H, W]": quarter(channels=9, stride=4),
            "32 x 32 cells of 1 pixels became 8 x 8; the declared stride of 8 gives 4 in place "
            "of 8": quarter(channels=8, stride=8),
            # By an odd image.
            "raised an error": forward(
                lambda self, sound, x: sound(F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2))
            ),
            "returned a list": forward(lambda self, sound, x: list(sound(x).values())),
        },
        "gradients_reach_every_parameter": {"(res6.weight, res6.bias) of 6": DeadStage},
        "can_be_traced": {
            "it is wrong for": forward(
                lambda self, sound, x: {k: v / int(x.shape[3]) for k, v in sound(x).items()}
            )
        },
    }
