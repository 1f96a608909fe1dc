"""Checks of detectors: they train, detect, can be saved, and their family knows them.

See Detectron2's ``META_ARCH_REGISTRY`` and :class:`yolof_d2.modeling.families.DetectorFamily`.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from yolof_d2.benchmark.contender import norms_fitted
from yolof_d2.benchmark.parts import marked
from yolof_d2.config import num_classes, set_num_classes
from yolof_d2.measure.model_cost import build_meta_model, count_multiply_adds
from yolof_d2.modeling import build_model
from yolof_d2.modeling.families import family_of, foreign_nodes
from yolof_d2.modeling.matcher.statistics import COUNTS

from .expectations import expect, expect_finite, expect_kind, expect_same, raising_means

SMALL = {
    "YOLOF": {"MODEL.RESNETS.OUT_FEATURES": "['res5']"},
    "RETINANET": {
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RETINANET.NUM_CLASSES": "3",
    },
    "FCOS": {
        "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
        "MODEL.FPN.OUT_CHANNELS": "64",  # two per group of its norms: one cell has a variance
        "MODEL.FCOS.NUM_CLASSES": "3",
    },
}
"""Node of a family -> more keys that make its detectors small."""


def select(name: str, keys: dict[str, str], overrides: dict[str, str]) -> dict[str, str]:
    """Return the config keys that select a detector and make it small.

    ``keys`` make all parts small, and ``overrides`` win; keys that it does not read are left out.
    """
    family = family_of(CfgNode({"MODEL": {"META_ARCHITECTURE": name}}))
    foreign = tuple(f"MODEL.{node}." for node in foreign_nodes(family))
    selected = {**keys, **SMALL.get(family.node, {}), **overrides, "MODEL.META_ARCHITECTURE": name}
    return {key: value for key, value in selected.items() if not key.startswith(foreign)}


class MetaArchSubject:
    """Build the detector that ``cfg`` selects, and its input."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        cfg.MODEL.DEVICE = "cpu"
        self.family = family_of(cfg)

    def build(self) -> Any:
        return build_model(self.cfg)

    def make_batch(self, *, large: bool = False) -> list[dict[str, Any]]:
        """Make two images with objects, or a ``large`` one with an object for each level."""
        top = (num_classes(self.cfg) or 1) - 1
        if large:
            return [_make_image((640, 640), (24, 48, 96, 192, 400, 620), top)]
        return [_make_image((96, 128), (24, 80), top), _make_image((64, 64), (40,), top)]


def _make_image(size: tuple[int, int], sides: tuple[int, ...], top: int = 0) -> dict[str, Any]:
    boxes = [[10.0, 10.0, 10.0 + side, 10.0 + side] for side in sides]
    classes = [top - i % (top + 1) for i in range(len(sides))]
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    height, width = size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def _empty() -> list[dict[str, Any]]:
    return [_make_image((96, 128), ()), _make_image((64, 64), ())]


def _losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    with EventStorage():
        losses = model.train()(batch)
    expect(
        isinstance(losses, dict) and bool(losses),
        f"in training forward() returned a {type(losses).__name__}; wanted losses by name",
    )
    for name, loss in losses.items():
        expect(
            isinstance(loss, Tensor) and loss.numel() == 1,
            f"in training {name} is no tensor of one value; wanted a scalar loss",
        )
    return losses


@torch.no_grad()
def _detect(model: nn.Module, batch: list[dict[str, Any]]) -> list[Instances]:
    results = model.eval()(batch)
    expect(
        isinstance(results, list) and len(results) == len(batch),
        f"in evaluation forward() of {len(batch)} images returned {type(results).__name__}; "
        "wanted a list with a dict for each",
    )
    for result in results:
        expect(
            isinstance(result, dict) and isinstance(result.get("instances"), Instances),
            "in evaluation a result has no 'instances'; wanted {'instances': Instances}",
        )
    return [result["instances"] for result in results]


def _values(found: Instances, scale: float = 1.0) -> dict[str, Tensor]:
    """Return boxes, times ``scale``, and scores by name."""
    return {"pred_boxes": found.pred_boxes.tensor * scale, "scores": found.scores}


def _detecting(subject: MetaArchSubject) -> Any:
    """Build a detector that detects: every candidate passes, where its family knows how."""
    model = subject.build()
    if subject.family.threshold:
        subject.family.set_threshold(model, 0.0)
    return model


def is_a_detector(subject: MetaArchSubject) -> None:
    """It can be built from a config, and is a module with parameters to train."""
    name = subject.cfg.MODEL.META_ARCHITECTURE
    expect(name in META_ARCH_REGISTRY, f"{name} is not registered")
    model = subject.build()
    expect_kind(model, nn.Module)
    expect(any(p.requires_grad for p in model.parameters()), "it has no parameter to train")


def losses_are_finite(subject: MetaArchSubject) -> None:
    """Before and after a step of training, and with no object in the batch."""
    model = subject.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batches = {"with objects": subject.make_batch(), "with no object in the batch": _empty()}
    for when, batch in batches.items():
        for step in ("before", "after"):
            losses = _losses(model, batch)
            expect_finite(losses, f"{when}, {step} a step")
            optimizer.zero_grad()
            torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
            optimizer.step()


def gradients_reach_every_parameter(subject: MetaArchSubject) -> None:
    """A parameter that is not used wastes memory, and stops DistributedDataParallel."""
    model = subject.build()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    batches = {"": subject.make_batch(large=True), " with no object in the batch": _empty()}
    for when, batch in batches.items():
        total = torch.stack([loss.sum() for loss in _losses(model, batch).values()]).sum()
        expect(total.requires_grad, f"the losses have no gradient at all{when}")
        gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        found = dict(zip(trained, gradients, strict=True))
        absent = [name for name, grad in found.items() if grad is None]
        dead = [n for n, grad in found.items() if grad is not None and not (when or grad.any())]
        for names, what in ((absent, "get no gradient"), (dead, "get a gradient of zero")):
            expect(
                not names,
                f"{len(names)} of {len(trained)} parameters ({', '.join(names[:3])}) {what}{when}; "
                "each must be used, or not be there",
            )


def detections_keep_the_contract(subject: MetaArchSubject) -> None:
    """Boxes inside the image, finite scores, known classes; down to an image of one pixel."""
    classes = num_classes(subject.cfg)
    most = subject.cfg.TEST.DETECTIONS_PER_IMAGE
    batch = [_make_image((64, 96), ()), _make_image((97, 70), ()), _make_image((1, 1), ())]
    batch[0] |= {"height": 128, "width": 48}
    found = _detect(_detecting(subject), batch)
    for image, instances in zip(batch, found, strict=True):
        size = (image["height"], image["width"])
        expect(
            instances.image_size == size,
            f"image_size is {instances.image_size}; wanted {size}, the height and width asked for",
        )
        missing = [n for n in ("pred_boxes", "scores", "pred_classes") if not instances.has(n)]
        expect(not missing, f"the detections have no {', '.join(missing)}")
        expect(len(instances) <= most, f"{len(instances)} detections of an image; wanted {most}")
        expect_kind(instances.pred_boxes, Boxes, "pred_boxes is")
        boxes, labels = instances.pred_boxes.tensor, instances.pred_classes
        scores = instances.scores
        expect_finite(_values(instances), f"of an image of {size}")
        inside = (boxes >= 0) & (boxes <= torch.tensor([size[1], size[0]] * 2))
        expect(inside.all(), f"boxes reach out of an image of {size}")
        expect(((scores >= 0) & (scores <= 1)).all(), "scores lie outside [0, 1]")
        expect(not labels.is_floating_point(), f"pred_classes are {labels.dtype}; wanted int64")
        known = (labels >= 0) & (classes is None or labels < classes)
        expect(known.all(), f"pred_classes lie outside [0, {classes})")
    some = not subject.family.threshold or any(map(len, found))
    expect(some, "nothing is detected with a score threshold of 0")


def boxes_are_scaled_to_the_wanted_size(subject: MetaArchSubject) -> None:
    """``height`` and ``width`` of an input are those of the output."""
    model, image = _detecting(subject), _make_image((64, 96), ())
    same, scaled = (
        _detect(model, [{**image, "height": 64 * k, "width": 96 * k}])[0] for k in (1, 4)
    )
    expect(len(same) == len(scaled), "how much is detected depends on the wanted size")
    differs = "an output of four times the size has other boxes than four times as large ones"
    expect_same(_values(scaled, 1 / 4), _values(same), differs, 1e-4)


def weights_survive_saving_and_loading(subject: MetaArchSubject) -> None:
    """All that detections depend on is in the state dict."""
    model = _detecting(subject)
    _losses(model, subject.make_batch())  # moves running statistics off their start
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = _detecting(subject)
    with raising_means("a newly built detector does not take the saved weights"):
        fresh.load_state_dict(torch.load(file))
    batch = [_make_image((64, 96), ())]
    got, wanted = (_detect(each, batch)[0] for each in (fresh, model))
    differs = "a newly built detector with the saved weights differs; "
    differs += "is a tensor no parameter and no registered buffer?"
    expect_same(_values(got), _values(wanted), differs)


def class_count_is_that_of_the_config(subject: MetaArchSubject) -> None:
    """The detector reads ``NUM_CLASSES`` of its family's node. Can be waived."""
    node = subject.family.node
    expect(bool(node), "its family names no node; declare one by detector_family")
    candidates = {}
    for count in (2, 6):
        cfg = subject.cfg.clone()
        set_num_classes(cfg, count)
        expect(num_classes(cfg) == count, f"MODEL.{node}.NUM_CLASSES could not be set")
        model = build_model(cfg).eval()
        with torch.no_grad(), subject.family.candidate_scores(model) as scores:
            model([_make_image((64, 96), ())])
        candidates[count] = scores[0].numel()
    expect(
        candidates[6] == 3 * candidates[2],
        f"with MODEL.{node}.NUM_CLASSES 2 and 6 it has {candidates[2]} and {candidates[6]} "
        "candidates; wanted three times as many",
    )


def family_tells_the_parts(subject: MetaArchSubject) -> None:
    """Benchmark and model zoo have speed, parameters and multiply-adds by part. Can be waived."""
    model = subject.build()
    parts = subject.family.find_parts(model)
    for name, part in vars(parts).items():
        expect(
            part is None or any(part is module for module in model.modules()),
            f"{name} is no module of the model",
        )
    wanted = ["other", "backbone", *(["encoder"] if parts.encoder else []), "decoder"]
    for mode, last in ((True, "matching and loss"), (False, "post-processing")):
        marks: list[str] = []
        with EventStorage(), torch.no_grad(), marked(model.train(mode), marks.append):
            model(subject.make_batch())
        expect(
            marks == [*wanted, last],
            f"the parts ended in the order {marks}; wanted {[*wanted, last]}",
        )
    names = subject.family.describe_parts(subject.cfg, model)
    slots = {"encoder", "decoder", "matcher", "box loss"}
    expect(
        set(names) == slots and all(isinstance(name, str) and name for name in names.values()),
        f"describe_parts() returned {names}; wanted a name for each of {sorted(slots)}",
    )
    meta = build_meta_model(subject.cfg)
    work = count_multiply_adds(meta, subject.family.padded_size(meta, (64, 96)))
    expect(work > 0, "predict() of its family runs no convolution; wanted the dense part")


def family_sets_the_threshold(subject: MetaArchSubject) -> None:
    """The benchmark gives every model the same number of candidates. Can be waived."""
    model, family = subject.build().eval(), subject.family
    batch = [_make_image((64, 96), ())] * 2
    with norms_fitted(model), torch.no_grad():  # untrained, all scores may be 1
        model(batch)

    def detect(threshold: float) -> tuple[list[Tensor], list[Instances]]:
        family.set_threshold(model, threshold)
        expect(
            family.get_threshold(model) == threshold,
            f"the threshold was set to {threshold} and is {family.get_threshold(model)}",
        )
        with family.candidate_scores(model) as scores:
            found = _detect(model, batch)
        return scores, found

    before = _callables(model)
    scores, found = detect(0.0)
    expect(_callables(model) == before, "candidate_scores() leaves the model changed")
    expect(
        len(scores) == len(batch) and all(image.dim() == 1 for image in scores),
        f"candidate_scores() gave {len(scores)} items; wanted a vector for each of {len(batch)}",
    )
    expect(len(found[0]) > 0, "nothing is detected with a score threshold of 0")
    distance = (found[0].scores[:, None] - scores[0]).abs().amin(1).max().item()
    expect(
        distance < 1e-5,
        f"a detection has a score {distance:.2g} from that of any candidate; wanted the scores "
        "that are compared with the threshold",
    )
    threshold = found[0].scores.median().item()
    for image in detect(threshold)[1]:
        expect(
            len(image) > 0 and bool((image.scores > threshold).all()),
            f"with a score threshold of {threshold:.6g} the scores detected are not all above it",
        )


def family_counts_matches(subject: MetaArchSubject) -> None:
    """The statistics under ``match/`` of a training need it. Can be waived."""
    model, family = subject.build().train(), subject.family
    for batch in (subject.make_batch(), _empty()):
        before = _callables(model)
        with family.counted_matches(model) as counted:
            _losses(model, batch)
        expect(_callables(model) == before, "counted_matches() leaves the model changed")
        expect(len(counted) > 0, "no matches are counted in a step of training")
        counts = dict(zip(COUNTS, torch.stack(counted).sum(0).tolist(), strict=True))
        objects = sum(len(image["instances"]) for image in batch)
        expect(
            counts["gt"] == objects * len(counted),
            f"{counts['gt']} objects were counted in a batch of {objects}",
        )
        expect(
            counts["anchors"] > 0 and (counts["positives"] > 0) == (objects > 0),
            f"{counts['positives']} positives of {counts['anchors']} anchors were counted with "
            f"{objects} objects",
        )


def _callables(model: nn.Module) -> dict[str, int]:
    """Return attributes of the instance that can be called, such as a replaced method."""
    return {name: id(value) for name, value in vars(model).items() if callable(value)}
