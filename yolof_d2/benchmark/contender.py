"""One model of the comparison: fixed input, weights that keep values in range, its two steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from yolof_d2.config import num_classes
from yolof_d2.engine import Trainer
from yolof_d2.engine.train_loop import MixedPrecisionTrainer
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import build_model
from yolof_d2.modeling.families import family_of_model

from .parts import Mark

SEED = 0
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What all models are given alike."""

    size: tuple[int, int]  # height and width of an image, in pixels
    batch_size: tuple[int, int]  # images of a training step, and of an inference
    objects: int  # ground truth boxes of a training image
    boxes: int  # candidates of a test image that pass the score threshold
    warmup: int  # rounds that do not count
    iterations: int  # rounds that do


class Contender:
    """A model with everything that its steps need; the work is the same in every step.

    The learning rate is 0, so that the optimizer does its work and the weights stay as they are:
    matches and losses are the same in every step.
    """

    def __init__(self, name: str, cfg: CfgNode, options: Options):
        """
        Args:
            name: for tables.
            cfg: its ``MODEL.DEVICE`` is where the steps run, ``SOLVER.AMP`` their precision.
            options: the input.

        Raises:
            ConfigError: the parts of the model cannot be told apart, or more candidates are wanted
            than it has.
        """
        torch.manual_seed(SEED)
        self.name = name
        self.model = build_model(cfg)
        self._family = family_of_model(self.model)
        self._family.find_parts(self.model)
        self.device = torch.device(cfg.MODEL.DEVICE)
        train_batch, test_batch = options.batch_size
        classes = num_classes(cfg) or 1
        # Of different images in training. In inference they are equal, so that the stated number
        # of candidates is that of each of them.
        images = [make_image(options, classes, seed=SEED + i) for i in range(train_batch)]
        self.test_inputs = [{"image": images[0]["image"]}] * test_batch
        optimizer = Trainer.build_optimizer(cfg, self.model)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        self.precision = _PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None
        self._trainer = _MarkingTrainer(
            self.model, itertools.repeat(images), optimizer, self.precision
        )
        self._storage = EventStorage()
        self.model.eval()
        with norms_fitted(self.model):
            self.detect()
        self.candidates = self._let_pass(options.boxes)

    def train(self, mark: Mark) -> None:
        """Run one iteration as ``train_net.py`` does; the model has to be in training mode."""
        self._trainer.mark = mark
        with self._storage:
            self._trainer.run_step()
        mark("optimizer")

    @torch.no_grad()
    def detect(self) -> list[dict[str, Instances]]:
        """Detect in the batch of test images; the model has to be in eval mode."""
        with torch.autocast(
            self.device.type, dtype=self.precision, enabled=self.precision is not None
        ):
            return self.model(self.test_inputs)

    def _let_pass(self, boxes: int) -> dict[str, Any]:
        """Set the score threshold so that ``boxes`` candidates of an image pass it.

        Returns:
            ``of``: candidates of an image, anchors times classes; ``threshold``; ``passed`` and
            ``kept``: of each image, how many passed it, and how many the suppression left.
        """
        scores, _ = self._score()
        if boxes >= scores[0].numel():
            raise ConfigError(
                f"--boxes is {boxes}, but {self.name} has {scores[0].numel()} candidates in an "
                "image of this size (anchors times classes); ask for fewer"
            )
        # A score has to be above the threshold.
        threshold = scores[0].topk(boxes + 1).values[-1].item()
        self._family.set_threshold(self.model, threshold)
        scores, detections = self._score()
        return {
            "of": scores[0].numel(),
            "threshold": threshold,
            "passed": [int((image > threshold).sum()) for image in scores],
            "kept": [len(image["instances"]) for image in detections],
        }

    def _score(self) -> tuple[list[Tensor], list[dict[str, Instances]]]:
        """Scores of all candidates of each image, as they are compared with the threshold."""
        with self._family.candidate_scores(self.model) as scores:
            return scores, self.detect()


class _MarkingTrainer(MixedPrecisionTrainer):
    """The trainer, which says when the backward pass has ended."""

    mark: Mark

    def after_backward(self) -> None:
        super().after_backward()
        self.mark("backward")


def make_image(options: Options, classes: int, seed: int) -> dict[str, Any]:
    """Make noise with boxes, as a mapper gives an image: the same for the same seed.

    Boxes have sides from 16 pixels, or a quarter of the image's where that is less, to half of the
    image's, evenly in their logarithm.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = options.size
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    sides = torch.tensor([width, height])
    smallest = (sides / 4).clamp(max=16)
    share = torch.rand(options.objects, 2, generator=generator)
    extent = smallest * (sides / 2 / smallest) ** share
    corner = torch.rand(options.objects, 2, generator=generator) * (sides - extent)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat((corner, corner + extent), dim=1))
    instances.gt_classes = torch.randint(classes, (options.objects,), generator=generator)
    return {"image": image, "instances": instances, "height": height, "width": width}


@contextmanager
def norms_fitted(model: nn.Module) -> Iterator[None]:
    """Give weights to a model with which a forward pass inside keeps values near 1.

    Untrained weights do not: a ResNet with frozen norms makes values larger with each block, past
    what half precision can hold, and a RetinaNet head makes them so small that all scores are
    equal. So weights are drawn with variance 1 / fan-in here, and norms take the statistics of what
    passes through them inside, as training would have given them.
    """

    def fit(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        norm.running_mean.copy_(values.mean((0, 2, 3)))
        norm.running_var.copy_(values.var((0, 2, 3), correction=0))

    hooks = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        # Frozen norms too, of which Detectron2, torchvision and timm have a class each.
        elif isinstance(getattr(module, "running_var", None), Tensor):
            hooks.append(module.register_forward_pre_hook(fit))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
