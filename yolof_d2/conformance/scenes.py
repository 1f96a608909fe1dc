"""Anchors, predictions and ground truth that matchers and losses are tried on.

The first scene is an ordinary batch; each other has one thing in which parts have failed before.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor
from torch.nn import functional as F

from yolof_d2.modeling import GroundTruth

SHAPE = ShapeSpec(channels=32, stride=32)


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch of N images as a matcher is given it.

    Attributes:
        title: what is particular, for messages.
        cfg: of the parts to try.
        num_anchors: A, per cell.
        anchors: float32 (R, 4) XYXY pixels.
        logits: float32 (N, R, K).
        boxes: predictions, float32 (N, R, 4) XYXY pixels.
        truth: padded boxes and classes.
    """

    title: str
    cfg: CfgNode
    num_anchors: int
    anchors: Tensor
    logits: Tensor
    boxes: Tensor
    truth: GroundTruth

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        truth = {f"ground_truth.{name}": value for name, value in vars(self.truth).items()}
        return {
            "anchors": self.anchors,
            "pred_logits": self.logits,
            "pred_boxes": self.boxes,
            **truth,
        }

    def to(self, device: str) -> Scene:
        """The same on ``device``."""
        return dataclasses.replace(
            self,
            anchors=self.anchors.to(device),
            logits=self.logits.to(device),
            boxes=self.boxes.to(device),
            truth=map_truth(self.truth, lambda value: value.to(device)),
        )

    def alone(self, n: int) -> Scene:
        """Image ``n`` as a batch of its own, padded no more than it must."""
        count = max(1, int(self.truth.valid[n].sum()))
        return dataclasses.replace(
            self,
            logits=self.logits[n : n + 1],
            boxes=self.boxes[n : n + 1],
            truth=map_truth(self.truth, lambda value: value[n : n + 1, :count]),
        )

    def padded(self, more: int) -> Scene:
        """The same batch with ground truth padded by ``more``."""

        def pad(value: Tensor) -> Tensor:
            return F.pad(value, (0, 0, 0, more) if value.dim() == 3 else (0, more))

        return dataclasses.replace(self, truth=map_truth(self.truth, pad))


def map_truth(truth: GroundTruth, function: Callable[[Tensor], Tensor]) -> GroundTruth:
    """Apply ``function`` to each tensor of ``truth``."""
    return GroundTruth(*(function(value) for value in vars(truth).values()))


def ordinary(cfg: CfgNode) -> Scene:
    """Three images with three, no and one object."""
    scene = _scene("an ordinary batch", cfg, (6, 8), (3, 0, 1))
    # The first object of an image is covered exactly by an anchor in the middle, and predicted so.
    middle = (3 * 8 + 4) * scene.num_anchors
    scene.truth.boxes[:, 0] = scene.anchors[middle] * scene.truth.valid[:, :1]
    scene.boxes[:, middle] = scene.anchors[middle]
    return scene


def no_objects(cfg: CfgNode) -> Scene:
    """Two images without any object."""
    return _scene("no object in the batch", cfg, (6, 8), (0, 0))


def extreme_predictions(cfg: CfgNode) -> Scene:
    """Predicted boxes without area, and far larger than the image; certain scores."""
    scene = _scene("predictions of no size and of huge size", cfg, (6, 8), (3, 1))
    scene.boxes[:, 0::3, 2:] = scene.boxes[:, 0::3, :2]
    scene.boxes[:, 1::3] += torch.tensor([-1e5, -1e5, 1e5, 1e5])
    return dataclasses.replace(scene, logits=scene.logits * 100)


def non_finite_predictions(cfg: CfgNode) -> Iterator[Scene]:
    """What a diverging network predicts, in half of its predictions or in all."""
    for number, names, step in itertools.product(
        ("nan", "inf", "-inf", "1e30"), (("boxes",), ("logits",), ("boxes", "logits")), (2, 1)
    ):
        share = "half of the" if step == 2 else "all"
        title = f"{share} {' and '.join(names)} that are {number}"
        scene = _scene(title, cfg, (6, 8), (3, 1))
        for name in names:
            getattr(scene, name)[:, ::step] = float(number)
        yield scene


def all_scenes(cfg: CfgNode) -> list[Scene]:
    """Every scene with finite predictions."""
    single = cfg.clone()
    single.MODEL.ANCHOR_GENERATOR.SIZES = [[64]]
    single.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    equal = _scene("300 equal objects", cfg, (6, 8), (300,))
    equal.truth.boxes[:] = equal.truth.boxes[0, 0].clone()
    equal.boxes[:] = equal.boxes[0, 0].clone()
    equal.logits.zero_()
    small = _scene("objects of one pixel", cfg, (6, 8), (3, 1))
    small.truth.boxes[..., 2:] = small.truth.boxes[..., :2] + small.truth.valid[..., None]
    return [
        ordinary(cfg),
        no_objects(cfg),
        _scene("many objects", cfg, (6, 8), (40, 0, 7)),
        _scene("more objects than anchors", cfg, (1, 1), (20, 1)),
        _scene("a single anchor", single, (1, 1), (2,)),
        equal,
        small,
        extreme_predictions(cfg),
    ]


def _scene(title: str, cfg: CfgNode, cells: tuple[int, int], counts: tuple[int, ...]) -> Scene:
    """Random objects on a map of ``cells``, and predictions near their anchors."""
    generator = build_anchor_generator(cfg, [SHAPE])
    (num_anchors,) = generator.num_anchors
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # Detectron2's
        anchors = generator([torch.zeros(1, 1, *cells)])[0].tensor
    num_images, num_gt = len(counts), max(1, *counts)
    size = torch.tensor([cells[1], cells[0]]) * SHAPE.stride

    corner = torch.rand(num_images, num_gt, 2) * size * 0.7
    extent = torch.rand(num_images, num_gt, 2) * size * 0.5 + 16
    valid = torch.arange(num_gt) < torch.tensor(counts)[:, None]
    classes = torch.randint(cfg.MODEL.YOLOF.NUM_CLASSES, (num_images, num_gt))
    truth = GroundTruth(
        torch.cat((corner, corner + extent), dim=-1) * valid[..., None], classes * valid, valid
    )
    noise = (torch.rand(num_images, len(anchors), 4) - 0.5) / 2  # in widths: no box turns over
    boxes = anchors + noise * (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    logits = torch.randn(num_images, len(anchors), cfg.MODEL.YOLOF.NUM_CLASSES)
    return Scene(title, cfg, num_anchors, anchors, logits, boxes, truth)
