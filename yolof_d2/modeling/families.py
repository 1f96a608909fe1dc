"""Detector families: config node, parts, threshold and matches of each kind of detector.

A detector's class declares its family, and its subclasses inherit it::

    @META_ARCH_REGISTRY.register()
    class MyDetector(nn.Module):
        detector_family = MyFamily()
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork, SemanticSegmentor
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from yolof_d2.errors import ConfigError

from .matcher import GroundTruth, MatchResult
from .matcher.statistics import count_labelled_anchors, count_matches


@dataclass(frozen=True)
class Parts:
    """The modules that end the parts of a detector; each is called once per batch."""

    backbone: nn.Module
    encoder: nn.Module | None  # None where nothing follows the backbone
    decoder: nn.Module


class DetectorFamily:
    """A kind of detector. A family of your own overrides what it can answer.

    This class is also the family of a detector that declares none: it trains and is evaluated, but
    no matches are counted, and every other question raises :class:`ConfigError`.

    Attributes:
        node: the node under ``MODEL`` that holds the keys and ``NUM_CLASSES``; "" if unknown.
        other_nodes: more nodes under ``MODEL`` that no other family reads. Configs may not set keys
            of another family's nodes.
        threshold: name of the model's attribute that holds the score threshold; detections score
            above it.
    """

    node: str = ""
    other_nodes: tuple[str, ...] = ()
    threshold: str = ""

    @property
    def nodes(self) -> set[str]:
        """Nodes under ``MODEL`` that belong to the family."""
        return {self.node, *self.other_nodes} - {""}

    def find_parts(self, model: Any) -> Parts:
        """Return the modules that end the parts of ``model``."""
        raise self._unknown(model, "the parts", "find_parts")

    def describe_parts(self, cfg: CfgNode, model: Any) -> dict[str, str]:
        """Return short names of ``encoder``, ``decoder``, ``matcher`` and ``box loss``."""
        raise self._unknown(model, "the names of the parts", "describe_parts")

    def predict(self, model: Any, images: Tensor) -> object:
        """Run the dense part, from normalised float ``images`` (N, 3, h, w) to raw predictions."""
        raise self._unknown(model, "the dense part", "predict")

    def padded_size(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size, (height, width) in pixels, to which ``model`` pads an image."""
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise self._unknown(model, "the padding of the images", "padded_size")
        image, constraints = torch.empty(1, *size, device="meta"), backbone.padding_constraints
        padded = ImageList.from_tensors([image], backbone.size_divisibility, 0.0, constraints)
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
        """Collect the scores that are compared with the threshold while ``model`` detects.

        The context's list has for each image a float (R * K,), the scores of all boxes and classes.
        """
        raise self._unknown(model, "the candidate scores", "candidate_scores")

    def counted_matches(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        """Count the matches of each batch while ``model`` trains.

        The context's list has for each batch an int64 (12,) in the order of
        :data:`~yolof_d2.modeling.matcher.statistics.COUNTS`, or nothing if unknown.
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

    def candidate_scores(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        def scores(result: object, logits: Tensor, *_: object) -> list[Tensor]:
            return [image.sigmoid().flatten() for image in logits]

        return collecting(model, "postprocess", scores)

    def counted_matches(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        def counts(match: MatchResult, *inputs: Any) -> list[Tensor]:
            _, pred_logits, _, ground_truth = inputs
            return [count_matches(match, ground_truth, pred_logits.shape[-1])]

        return collecting(model, "matcher", counts)


class _DenseFamily(DetectorFamily):
    """Subclasses of Detectron2's ``DenseDetector``: a head on the levels of a pyramid."""

    threshold = "test_score_thresh"
    matcher: str
    box_loss: str = ""  # where no key sets it

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

    def candidate_scores(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        def scores(result: object, anchors: object, box_cls: list[Tensor], *_: Any) -> list[Tensor]:
            return [torch.cat([level.flatten() for level in box_cls])]

        return collecting(model, "inference_single_image", scores)

    def counted_matches(self, model: Any) -> AbstractContextManager[list[Tensor]]:
        def counts(result: Any, anchors: Any, gt_instances: list[Instances]) -> list[Tensor]:
            labels, boxes = (torch.stack(each) for each in result)
            ground_truth = GroundTruth.from_instances(gt_instances, labels.device)
            return [count_labelled_anchors(labels, boxes, ground_truth, model.num_classes)]

        return collecting(model, "label_anchors", counts)


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
    """Detectron2's models with proposals or masks; they can be trained and evaluated."""

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
    """Return the family of the detector that ``cfg`` names.

    Raises:
        ConfigError: no detector of that name is registered, or ``detector_family`` is no family.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        near = difflib.get_close_matches(name, sorted(dict(META_ARCH_REGISTRY)), 1, cutoff=0)[0]
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which is not registered; did you mean {near!r}?"
        )
    return _declared_by(META_ARCH_REGISTRY.get(name))


def family_of_model(model: nn.Module) -> DetectorFamily:
    """Return the family of a built detector; raise as :func:`family_of` does."""
    return _declared_by(type(model))


def known_families() -> list[DetectorFamily]:
    """Return the family of each registered detector, plug-ins included."""
    return [_declared_by(detector) for _, detector in META_ARCH_REGISTRY]


def foreign_nodes(family: DetectorFamily) -> set[str]:
    """Return the nodes under ``MODEL`` that only other families read; none if it has no node."""
    if not family.node:
        return set()
    return {node for known in known_families() for node in known.nodes} - family.nodes


def _declared_by(detector: Any) -> DetectorFamily:
    """Return the family that a detector's class, or the function that builds it, declares."""
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
def collecting(
    model: nn.Module, name: str, extract: Callable[..., Iterable[Tensor]]
) -> Iterator[list[Tensor]]:
    """Collect what ``extract`` returns of each call of ``model.<name>`` inside the context.

    Args:
        name: of a method, a submodule or any attribute that can be called.
        extract: called with the result and the arguments of the call; must not change them.
    """
    called = getattr(model, name)
    found: list[Tensor] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        result = called(*args, **kwargs)
        found.extend(extract(result, *args, **kwargs))
        return result

    own = vars(model)  # found before methods and submodules
    before = {name: own[name]} if name in own else {}
    own[name] = call
    try:
        yield found
    finally:
        del own[name]
        own.update(before)
