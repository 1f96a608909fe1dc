"""Detector families: what the rest of the code must know of a detector, asked in one place.

A class declares its family by a class attribute, and its subclasses inherit it::

    @META_ARCH_REGISTRY.register()
    class MyDetector(nn.Module):
        detector_family = MyFamily()
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    RetinaNet,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from yolof_d2.errors import ConfigError

from .matcher import GroundTruth, MatchResult
from .matcher.statistics import count_labelled_anchors, count_matches


@dataclass(frozen=True)
class Parts:
    """The modules whose calls bound the parts of a detector; each is called once per batch."""

    backbone: nn.Module
    encoder: nn.Module | None  # what ends the encoder; None where nothing follows the backbone
    decoder: nn.Module


class DetectorFamily:
    """A kind of detector. A family of your own overrides what it can answer.

    This class is also the family of a detector that declares none: it trains and is evaluated, no
    matches are counted, and each question that needs an answer raises :class:`ConfigError`.

    Attributes:
        node: the node under ``MODEL`` that holds the keys and ``NUM_CLASSES``; "" if unknown.
        other_nodes: more nodes under ``MODEL`` that no other family reads. Keys of foreign nodes
            are refused in configs.
        threshold: name of the model's attribute that is the score threshold; a detection has a
            higher score.
    """

    node: str = ""
    other_nodes: tuple[str, ...] = ()
    threshold: str = ""

    @property
    def nodes(self) -> set[str]:
        """All nodes under ``MODEL`` that are the family's own."""
        return {self.node, *self.other_nodes} - {""}

    def find_parts(self, model: Any) -> Parts:
        """Return the modules that bound the parts of ``model``."""
        raise self._unknown(model, "the parts", "find_parts")

    def describe_parts(self, cfg: CfgNode, model: Any) -> dict[str, str]:
        """Return short names of ``encoder``, ``decoder``, ``matcher`` and ``box loss``."""
        raise self._unknown(model, "the names of the parts", "describe_parts")

    def predict(self, model: Any, images: Tensor) -> object:
        """Run the dense part, from normalised float ``images`` (N, 3, h, w) to raw predictions."""
        raise self._unknown(model, "the dense part", "predict")

    def padded_size(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width in pixels that ``model`` sees of an image of ``size``."""
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise self._unknown(model, "the padding of the images", "padded_size")
        padded = ImageList.from_tensors(
            [torch.empty(1, *size, device="meta")],
            backbone.size_divisibility,
            padding_constraints=backbone.padding_constraints,
        )
        height, width = padded.tensor.shape[-2:]
        return height, width

    def get_threshold(self, model: Any) -> float:
        """Return the score threshold of ``model``."""
        return getattr(model, self._threshold(model))

    def set_threshold(self, model: Any, value: float) -> None:
        """Set the score threshold of ``model``."""
        setattr(model, self._threshold(model), value)

    def _threshold(self, model: Any) -> str:
        if not self.threshold:
            raise self._unknown(model, "the score threshold", "threshold")
        return self.threshold

    def candidate_scores(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        """Collect, while ``model`` detects, the scores that are compared with the threshold.

        Returns:
            A context that gives a list. Each image adds the scores of all its candidates, boxes
            times classes, as one float (R * K,).
        """
        raise self._unknown(model, "the candidate scores", "candidate_scores")

    def counted_matches(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        """Collect, while ``model`` trains, how boxes are matched.

        Returns:
            A context that gives a list. Each batch adds an int64 (12,) in the order of
            :data:`~yolof_d2.modeling.matcher.statistics.COUNTS`; none where nothing is known.
        """
        return nullcontext([])

    def _unknown(self, model: object, what: str, question: str) -> ConfigError:
        if type(self) is DetectorFamily:
            why = "the class declares no family"
        else:
            why = f"{type(self).__name__} does not define {question!r}"
        return ConfigError(
            f"{what} of a {type(model).__name__} cannot be told: {why}; expected a YOLOF, "
            "RetinaNet or FCOS, a subclass of one, or a class whose detector_family answers it "
            "(docs/adding_a_part.md)"
        )


class YOLOFFamily(DetectorFamily):
    """YOLOF: backbone, encoder, decoder and matcher in slots."""

    node = "YOLOF"
    threshold = "score_thresh"

    def find_parts(self, model: Any) -> Parts:
        return Parts(model.backbone, model.encoder, model.decoder)

    def describe_parts(self, cfg: CfgNode, model: Any) -> dict[str, str]:
        node = cfg.MODEL.YOLOF
        parts = {slot: node[slot.upper()].NAME for slot in ("encoder", "decoder", "matcher")}
        names = {slot: name.removesuffix(slot.capitalize()) for slot, name in parts.items()}
        return {**names, "box loss": node.LOSS.FOCAL_BOX.BBOX_REG_LOSS_TYPE}

    def predict(self, model: Any, images: Tensor) -> object:
        return model.predict(images)

    @contextmanager
    def candidate_scores(self, model: Any) -> Iterator[list[Tensor]]:
        scores: list[Tensor] = []

        def keep(result: object, logits: Tensor, *_: object) -> None:
            scores.extend(image.sigmoid().flatten() for image in logits)

        with listening(model, "postprocess", keep):
            yield scores

    @contextmanager
    def counted_matches(self, model: Any) -> Iterator[list[Tensor]]:
        counts: list[Tensor] = []

        def count(
            match: MatchResult,
            anchors: Tensor,
            pred_logits: Tensor,
            pred_boxes: Tensor,
            ground_truth: GroundTruth,
        ) -> None:
            counts.append(count_matches(match, ground_truth, pred_logits.shape[-1]))

        with listening(model, "matcher", count):
            yield counts


class _DenseFamily(DetectorFamily):
    """Detectron2's ``DenseDetector``: a head on the levels of a pyramid."""

    threshold = "test_score_thresh"
    matcher: str
    box_loss: str = ""  # where the model has no choice

    def find_parts(self, model: Any) -> Parts:
        backbone = getattr(model.backbone, "bottom_up", model.backbone)
        return Parts(backbone, None if backbone is model.backbone else model.backbone, model.head)

    def describe_parts(self, cfg: CfgNode, model: Any) -> dict[str, str]:
        encoder = cfg.MODEL.BACKBONE.NAME.removesuffix("_backbone").rsplit("_", 1)[-1].upper()
        return {
            "encoder": encoder,
            "decoder": type(model.head).__name__,
            "matcher": self.matcher,
            "box loss": self.box_loss or model.box_reg_loss_type,
        }

    def predict(self, model: Any, images: Tensor) -> object:
        features = model.backbone(images)
        return model.head([features[name] for name in model.head_in_features])

    @contextmanager
    def candidate_scores(self, model: Any) -> Iterator[list[Tensor]]:
        scores: list[Tensor] = []

        def keep(result: Instances, anchors: list[Boxes], box_cls: list[Tensor], *_: Any) -> None:
            scores.append(torch.cat([level.flatten() for level in box_cls]))

        with listening(model, "inference_single_image", keep):
            yield scores

    @contextmanager
    def counted_matches(self, model: Any) -> Iterator[list[Tensor]]:
        counts: list[Tensor] = []

        def count(
            result: tuple[list[Tensor], list[Tensor]],
            anchors: list[Boxes],
            gt_instances: list[Instances],
        ) -> None:
            labels, boxes = (torch.stack(each) for each in result)
            ground_truth = GroundTruth.from_instances(gt_instances, labels.device)
            counts.append(count_labelled_anchors(labels, boxes, ground_truth, model.num_classes))

        with listening(model, "label_anchors", count):
            yield counts


class RetinaNetFamily(_DenseFamily):
    """Detectron2's RetinaNet."""

    node = "RETINANET"
    matcher = "MaxIoU"


class FCOSFamily(_DenseFamily):
    """Detectron2's FCOS."""

    node = "FCOS"
    matcher = "center sampling"
    box_loss = "giou"


class TwoStageFamily(DetectorFamily):
    """Detectron2's models with proposals or masks, which train and are evaluated."""

    node = "ROI_HEADS"
    other_nodes = (
        *("ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"),
        *("RPN", "PROPOSAL_GENERATOR", "SEM_SEG_HEAD", "PANOPTIC_FPN"),
    )


_OF_DETECTRON2: dict[object, DetectorFamily] = {
    RetinaNet: RetinaNetFamily(),
    FCOS: FCOSFamily(),
    **dict.fromkeys((GeneralizedRCNN, ProposalNetwork, SemanticSegmentor), TwoStageFamily()),
}
_UNKNOWN = DetectorFamily()


def family_of(cfg: CfgNode) -> DetectorFamily:
    """Return the family of the detector that ``cfg`` builds.

    Raises:
        ConfigError: no detector of that name is registered, or it declares something else.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        near = difflib.get_close_matches(name, sorted(dict(META_ARCH_REGISTRY)), 1, cutoff=0)[0]
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which is not registered; did you mean {near!r}?"
        )
    return _declared_by(META_ARCH_REGISTRY.get(name))


def family_of_model(model: nn.Module) -> DetectorFamily:
    """Return the family of a built detector.

    Raises:
        ConfigError: its class declares something else.
    """
    return _declared_by(type(model))


def known_families() -> list[DetectorFamily]:
    """Return the family of each registered detector, plug-ins included."""
    return [_declared_by(detector) for _, detector in META_ARCH_REGISTRY]


def foreign_nodes(family: DetectorFamily) -> set[str]:
    """Return the nodes under ``MODEL`` that only other families read.

    A detector without a known node may read any: no node is foreign to it.
    """
    if not family.node:
        return set()
    return {node for known in known_families() for node in known.nodes} - family.nodes


def _declared_by(detector: Any) -> DetectorFamily:
    """Return what a detector, a class or a function that builds one, declares or inherits."""
    for source in getattr(detector, "__mro__", (detector,)):
        family = vars(source).get("detector_family") or _OF_DETECTRON2.get(source)
        if family is None:
            continue
        if not isinstance(family, DetectorFamily):
            raise ConfigError(
                f"detector_family of {source.__name__} is {family!r}, expected an instance of a "
                "DetectorFamily, such as YOLOFFamily()"
            )
        return family
    return _UNKNOWN


@contextmanager
def listening(model: nn.Module, name: str, listen: Callable[..., None]) -> Iterator[None]:
    """Follow each call of ``model.<name>``, inside, by ``listen(result, *its_arguments)``.

    Args:
        model: left at the end as it was.
        name: of a method, a submodule or any attribute that can be called.
        listen: must not change what it is given.
    """
    called = getattr(model, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = called(*args, **kwargs)
        listen(result, *args, **kwargs)
        return result

    own = vars(model)  # found before methods and submodules
    before = {name: own[name]} if name in own else {}
    own[name] = call
    try:
        yield
    finally:
        del own[name]
        own.update(before)
