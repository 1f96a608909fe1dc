"""Checks shared by the slots whose parts are ``nn.Module``: encoder, decoder and backbone.

Untrained weights hide faults: a branch that starts at zero, or weights so small that the output is
nearly constant. Where the values matter, the checks therefore use :func:`livened` parts.
"""

from __future__ import annotations

import copy
import io
import pickle
import unittest
import warnings
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from .expectations import expect, expect_finite, expect_on_meta, expect_same, raising_means

ROUNDING = 1e-3  # allowed relative difference where another order of summation is no fault


class ModuleSubject(ABC):
    """Build and run a part of one slot.

    Attributes:
        cfg: selects the part.
        sizes: heights and widths of the input that must work.
        size, other_size: two of them for checks that need no more, with room for statistics.
        passes_gradients: whether something before the part learns through it.
        promises_float32: whether outputs are float32 also under autocast.
    """

    sizes: tuple[tuple[int, int], ...] = ((1, 1), (1, 7), (13, 9), (25, 34))
    size = (13, 9)
    other_size = (8, 11)
    passes_gradients = True
    promises_float32 = False

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    @abstractmethod
    def build(self) -> nn.Module:
        """Build a new part, with weights drawn from the global random state."""

    @abstractmethod
    def make_input(self, part: nn.Module, batch: int, size: tuple[int, int]) -> Tensor:
        """Draw random input, float32 (``batch``, C, H, W)."""

    def livened_with_input(self) -> tuple[nn.Module, Tensor]:
        """Build a :func:`livened` part, and draw an input of two images."""
        part = livened(self.build())
        return part, self.make_input(part, 2, self.size)

    @abstractmethod
    def outputs(self, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Run ``part`` and name what it returns; raise if that is of the wrong kind."""


def livened(part: nn.Module) -> nn.Module:
    """Return ``part`` in evaluation mode, with new weights that each have an effect.

    Matrices and kernels get the gain that keeps the variance through ReLU (He et al. 2015, equation
    10); vectors, such as biases and scales, are moved off their constants.
    """
    with torch.no_grad():
        for parameter in part.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return part.eval()


def output_is_finite(subject: ModuleSubject) -> None:
    """Initial weights give finite outputs, in training and in evaluation."""
    part = subject.build()
    x = subject.make_input(part, 2, subject.size)
    for mode in (True, False):
        outputs = subject.outputs(part.train(mode), x)
        expect_finite(outputs, f"in {_mode(mode)}")


def gradients_reach_every_parameter(subject: ModuleSubject) -> None:
    """A parameter that is not used wastes memory, and stops DistributedDataParallel."""
    part = livened(subject.build())
    parameters = {name: p for name, p in part.named_parameters() if p.requires_grad}
    alive: set[str] = set()
    for mode in (True, False):
        x = subject.make_input(part, 2, subject.size).requires_grad_()
        outputs = subject.outputs(part.train(mode), x)
        # Random weights: the plain sum is constant behind some norms.
        weighted = [(value.float() * torch.randn(value.shape)).sum() for value in outputs.values()]
        total = torch.stack(weighted).sum()
        none = f"in {_mode(mode)} the output has no gradient at all; was it detached?"
        expect(total.requires_grad, none)
        of_x, *of_all = torch.autograd.grad(total, [x, *parameters.values()], allow_unused=True)
        expect(
            not subject.passes_gradients or (of_x is not None and bool(of_x.any())),
            f"in {_mode(mode)} no gradient reaches the input; what stands before the part "
            "could not learn",
        )
        found = dict(zip(parameters, of_all, strict=True))
        absent = [name for name, grad in found.items() if grad is None]
        expect(
            not (mode and absent),
            f"in training {_some(absent)} of {len(parameters)} parameters get no gradient; "
            "each must be used, or not be there",
        )
        alive |= {name for name, grad in found.items() if grad is not None and grad.any()}
    dead = [name for name in parameters if name not in alive]
    expect(
        not dead,
        f"{_some(dead)} of {len(parameters)} parameters always get a gradient of zero; "
        "each must have an effect, or not be there",
    )


def evaluation_is_deterministic(subject: ModuleSubject) -> None:
    """In evaluation the same input gives the same output."""
    part, x = subject.livened_with_input()
    first, second = _run(subject, part, x), _run(subject, part, x)
    expect_same(second, first, "in evaluation two runs on the same input differ")


def input_is_left_alone(subject: ModuleSubject) -> None:
    """Nothing is written into the input, which may be needed elsewhere."""
    part = livened(subject.build())
    for mode in (True, False):
        x = subject.make_input(part, 2, subject.size)
        before = x.clone()
        with torch.no_grad():
            subject.outputs(part.train(mode), x)
        expect(
            torch.equal(x, before),
            f"in {_mode(mode)} the input was changed in place; is the first layer inplace=True?",
        )


def images_do_not_depend_on_their_batch(subject: ModuleSubject) -> None:
    """In evaluation an image's output is the same alone and in a batch."""
    part = livened(subject.build())
    batch = subject.make_input(part, 3, subject.size)
    together = _run(subject, part, batch)
    for n in range(len(batch)):
        expect_same(
            _run(subject, part, batch[n : n + 1]),
            {name: value[n : n + 1] for name, value in together.items()},
            "in evaluation an image alone and the same image in a batch differ",
            ROUNDING,
        )


def works_under_bfloat16_autocast(subject: ModuleSubject) -> None:
    """It runs on a CPU, in training and evaluation."""
    _works_under_autocast(subject, torch.bfloat16)


def works_under_float16_autocast(subject: ModuleSubject) -> None:
    """It runs on a CPU, in training and evaluation."""
    _works_under_autocast(subject, torch.float16)


def _works_under_autocast(subject: ModuleSubject, dtype: torch.dtype) -> None:
    part = subject.build()
    x = subject.make_input(part, 2, subject.size)
    for mode in (True, False):
        try:
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
                outputs = subject.outputs(part.train(mode), x)
        except RuntimeError as error:
            if "not implemented for" in str(error):
                raise unittest.SkipTest(f"PyTorch on this CPU: {error}") from error
            raise
        for name, value in outputs.items():
            expect(
                value.dtype == torch.float32 or not subject.promises_float32,
                f"{name} is {value.dtype} under {dtype} autocast; wanted float32 always",
            )
        # In evaluation an untrained norm does not normalise, and overflow is no fault of the part.
        if mode:
            expect_finite(outputs, f"in training under {dtype} autocast")


def weights_survive_saving_and_loading(subject: ModuleSubject) -> None:
    """All that the output depends on is in the state dict."""
    part, x = subject.livened_with_input()
    with torch.no_grad():
        subject.outputs(part.train(), x)  # moves running statistics off their start
    file = io.BytesIO()
    torch.save(part.eval().state_dict(), file)
    file.seek(0)
    fresh = subject.build().eval()
    with raising_means("a newly built part does not take the saved weights"):
        fresh.load_state_dict(torch.load(file))
    differs = "a newly built part with the saved weights differs; "
    differs += "is a tensor no parameter and no registered buffer?"
    expect_same(_run(subject, fresh, x), _run(subject, part, x), differs)


def can_be_copied_and_pickled(subject: ModuleSubject) -> None:
    """Moving averages of weights copy a part, worker processes pickle it."""
    part, x = subject.livened_with_input()
    wanted = _run(subject, part, x)
    with raising_means("copy.deepcopy failed"):
        copied = copy.deepcopy(part)
    expect_same(_run(subject, copied, x), wanted, "a deep copy differs")
    with raising_means("pickling failed"):
        restored = pickle.loads(pickle.dumps(part))
    expect_same(_run(subject, restored, x), wanted, "the pickled part differs")


def can_be_traced(subject: ModuleSubject) -> None:
    """``torch.jit.trace`` at one size gives the right answer at another. Can be waived."""
    part = livened(subject.build())
    x = subject.make_input(part, 1, subject.size)
    with warnings.catch_warnings(), raising_means("torch.jit.trace failed"):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Flat(subject, part), x, check_trace=False)
    other = subject.make_input(part, 2, subject.other_size)
    wanted = _run(subject, part, other)
    with torch.no_grad(), raising_means(f"traced at {subject.size}, it fails at another size"):
        got = dict(zip(wanted, traced(other), strict=True))
    wrong = f"traced with one image of {subject.size} cells, it is wrong for two of "
    wrong += f"{subject.other_size}; is a size or a batch turned into a Python number?"
    expect_same(got, wanted, wrong, ROUNDING)


def never_waits_for_the_device(subject: ModuleSubject) -> None:
    """It runs on the meta device, where the host has no values to read. Can be waived."""
    part = subject.build()
    x = subject.make_input(part, 2, subject.size).to("meta")
    part.to("meta")
    for mode in (True, False):
        with on_meta_device():
            outputs = subject.outputs(part.train(mode), x)
        expect_on_meta(outputs)


def on_meta_device() -> AbstractContextManager[None]:
    """Explain what fails inside, on the meta device."""
    return raising_means(
        "it reads a value on the host (.item(), .nonzero(), a mask as index, if on a tensor) or "
        "mixes devices; wanted neither, as the host would wait for the GPU"
    )


class _Flat(nn.Module):
    """Return a tuple of tensors, as tracing needs."""

    def __init__(self, subject: ModuleSubject, part: nn.Module):
        super().__init__()
        self.subject = subject
        self.part = part

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.subject.outputs(self.part, x).values())


@torch.no_grad()
def _run(subject: ModuleSubject, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
    # Copies, as a part may write into its input, or return it.
    return {name: value.clone() for name, value in subject.outputs(part, x.clone()).items()}


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
