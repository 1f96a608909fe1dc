"""Checks of encoders, among them those that they share with other slots."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance.slots import SlotTests, alters, breaks, broken, case_of
from yolof_d2.conformance import SLOTS, WAIVABLE, ConformanceError
from yolof_d2.modeling import Encoder


class Sound(Encoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()
        self.conv = nn.Conv2d(input_shape.channels, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.scale = nn.Parameter(torch.zeros(16, 1, 1))  # at first the branch is off

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.conv(feature)
        return feature + self.scale * self.norm(feature).relu()

    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=16, stride=32)


class SoundHalving(Sound):
    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature)[:, :, ::2, ::2]

    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=16, stride=64)


class NoEncoder(nn.Conv2d):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(input_shape.channels, 16, 1)


class DeadParameter(Sound):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.unused = nn.Conv2d(16, 16, 1)


class InertParameter(Sound):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.inert = nn.Parameter(torch.ones(1))

    def forward(self, feature):
        return super().forward(feature) + 0 * self.inert


class HiddenTensor(Sound):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.position = torch.randn(16, 1, 1)

    def forward(self, feature):
        return super().forward(feature) + self.position


class HiddenStatistics(Sound):
    mean = 0.0

    def forward(self, feature):
        feature = super().forward(feature)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * float(feature.detach().mean()) + 1
        return feature - self.mean


class LateParameter(Sound):
    def forward(self, feature):
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(1))
        return super().forward(feature) * self.late


class MixedTypes(Sound):
    def forward(self, feature):
        feature = self.conv(feature)
        with torch.autocast("cpu", enabled=False):
            return self.norm(F.conv2d(feature, self.conv.weight[:, :16], padding=1))


class RefusesTracing(Sound):
    def forward(self, feature):
        if torch.jit.is_tracing():
            raise NotImplementedError("no tracing")
        return super().forward(feature)


# At the top of the file, since pickle looks for its classes there.


class KeepsALambda(Sound):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.activation = lambda x: x


class KeepsItsOutput(Sound):
    def forward(self, feature):
        with torch.enable_grad():
            self.last = super().forward(feature)
        return self.last


class ForgetsAHook(Sound):
    def __deepcopy__(self, memo):
        return Sound(None, ShapeSpec(channels=64, stride=32)).eval()


class ForgetsItsScale(Sound):
    def __deepcopy__(self, memo):
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        nn.init.zeros_(self.scale)


def cannot_be_built(self, sound, *inputs):
    raise KeyError("MODEL.YOLOF.ENCODER.MINE")


def pads_by_reflection(self, sound, x):
    return F.pad(sound(x), (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]


declares = breaks(Sound, "output_shape")
forward = breaks(Sound, "forward")
returns = alters(Sound, "forward")
drops_out = returns(lambda y: F.dropout(y, 0.1, training=True))
loses_the_batch = returns(lambda y: y.squeeze(0))


class TestEncoder(SlotTests):
    slot = "encoder"
    sound = [Sound, SoundHalving]
    broken = {
        "is_an_encoder": {
            "it is a NoEncoder; wanted an Encoder": NoEncoder,
            "returned a dict; wanted a ShapeSpec": declares(lambda *_: {"channels": 16}),
            "stride is 32.0; wanted a positive whole": declares(
                lambda *_: ShapeSpec(channels=16, stride=32.0)
            ),
            "could not be built: KeyError: 'MODEL.YOLOF.ENC": broken(
                Sound, __init__=cannot_be_built
            ),
            "names ['output_is_finite']; only these can": broken(
                Sound, not_promised={"output_is_finite": "it is hard"}
            ),
        },
        "output_has_the_declared_shape": {
            "shape [1, 16, 1, 1]; wanted [1, 17, H, W]": declares(
                lambda *_: ShapeSpec(channels=17, stride=32)
            ),
            "1 x 7 cells of 32 pixels became 1 x 4; the declared stride of 32 gives 7 in place "
            "of 4": declares(lambda *_: ShapeSpec(channels=16, stride=32), SoundHalving),
            "stride of 32 gives 1 in place of 0": returns(lambda y: y[:, :, 1:]),
            "shape [16, 1, 1]": loses_the_batch,
            "raised an error: RuntimeError": forward(pads_by_reflection),
            "returned a list; wanted a Tensor": returns(lambda y: [y]),
        },
        "output_is_finite": {
            "infinite or NaN in training; wanted none": returns(lambda y: y.relu().log())
        },
        "gradients_reach_every_parameter": {
            "in training 2 (unused.weight, unused.bias) of 7 parameters get no": DeadParameter,
            "1 (inert) of 6 parameters always get a gradient of zero": InertParameter,
            "in training 2 (unused.weight, unused.bias) of 7 parameters get no gradient": forward(
                lambda self, sound, x: sound(x) if self.training else self.unused(sound(x)),
                DeadParameter,
            ),
            "no gradient reaches the input": forward(lambda self, sound, x: sound(x.detach())),
            "has no gradient at all": returns(lambda y: y.detach()),
        },
        "evaluation_is_deterministic": {"two runs on the same input differ": drops_out},
        "input_is_left_alone": {
            "in training the input was changed": forward(
                lambda self, sound, x: sound(x if x.requires_grad else x.relu_())
            ),
            "in training the input was": forward(
                lambda self, sound, x: sound(x.mul_(2) if self.training else x)
            ),
        },
        "images_do_not_depend_on_their_batch": {
            "an image alone and the same image in a batch differ: output differs by": returns(
                lambda y: F.batch_norm(y, None, None, training=True)
            ),
            "output has shape [16, 13, 9] in place of [1, 16, 13, 9]": loses_the_batch,
        },
        "works_under_bfloat16_autocast": {"raised an error: RuntimeError": MixedTypes},
        "works_under_float16_autocast": {
            # In evaluation alone.
            "raised an error: RuntimeError": forward(
                lambda self, mixed, x: Sound.forward(self, x) if self.training else mixed(x),
                MixedTypes,
            ),
            "in training under torch.float16 autocast": forward(
                lambda self, sound, x: sound(x.to(self.conv(x).dtype) * 1e5) * 1e-5
            ),
        },
        "weights_survive_saving_and_loading": {
            "a newly built part with the saved weights differs": HiddenTensor,
            "saved weights differs": HiddenStatistics,
            "does not take the saved weights: RuntimeError": LateParameter,
        },
        "can_be_copied_and_pickled": {
            "pickling failed": KeepsALambda,
            "copy.deepcopy failed: RuntimeError": KeepsItsOutput,
            "a deep copy differs: output differs": ForgetsAHook,
            "the pickled part differs: output": ForgetsItsScale,
        },
        "can_be_traced": {
            "it is wrong for two of (8, 11)": forward(
                lambda self, sound, x: sound(x) / int(x.shape[-1])
            ),
            "it fails at another size: RuntimeError": forward(
                lambda self, sound, x: sound(x).view(int(x.shape[0]), 16, *x.shape[2:])
            ),
            "torch.jit.trace failed: NotImplementedError": RefusesTracing,
        },
        "never_waits_for_the_device": {
            "it reads a value on the host": forward(
                lambda self, sound, x: sound(x) * (2.0 if bool(x.sum() > 0) else 1.0)
            ),
            "or mixes devices": HiddenTensor,
            "output is on cpu; wanted the": forward(lambda self, sound, x: torch.ones(x.shape)),
        },
    }


def test_every_check_that_can_be_waived_exists():
    names = {check.__name__ for slot in SLOTS.values() for check in slot.checks}
    assert names >= WAIVABLE


def test_a_check_leaves_the_random_state_alone_and_repeats_itself(monkeypatch):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    messages = []
    for _ in range(2):
        with pytest.raises(ConformanceError) as error:
            case_of(monkeypatch, "encoder", drops_out, "evaluation_is_deterministic").run()
        messages.append(str(error.value))
        torch.rand(3)  # what came before does not matter
    assert messages[0] == messages[1]
    torch.set_rng_state(state)
    case_of(monkeypatch, "encoder", Sound, "output_is_finite").run()
    assert torch.equal(torch.get_rng_state(), state)
