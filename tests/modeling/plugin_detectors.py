"""Detectors as users write them in a plug-in: two subclasses, one of another kind, one unknown."""

from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from yolof_d2.modeling import YOLOF, GroundTruth, MatchResult
from yolof_d2.modeling.families import DetectorFamily, Parts, listening
from yolof_d2.modeling.matcher.statistics import count_matches


def add_config(cfg):
    cfg.MODEL.GRID = CfgNode({"NUM_CLASSES": 80, "MIN_SCORE": 0.05})


@META_ARCH_REGISTRY.register()
class MyYOLOF(YOLOF):
    pass


@META_ARCH_REGISTRY.register()
class MyRetina(RetinaNet):
    pass


class GridFamily(DetectorFamily):
    node = "GRID"
    threshold = "min_score"

    def find_parts(self, model):
        return Parts(model.backbone, None, model.head)

    def describe_parts(self, cfg, model):
        return {"encoder": "none", "decoder": "grid", "matcher": "centre", "box loss": "l1"}

    def predict(self, model, images):
        return model.head(model.backbone(images)["res5"])

    @contextmanager
    def candidate_scores(self, model):
        scores = []
        with listening(model, "select", lambda _, image, *rest: scores.append(image.flatten())):
            yield scores

    @contextmanager
    def counted_matches(self, model):
        counts = []

        def count(match, truth, *_):
            counts.append(count_matches(match, truth, model.num_classes))

        with listening(model, "match", count):
            yield counts


@META_ARCH_REGISTRY.register()
class GridDetector(nn.Module):
    """Each cell of the last map has a score per class, and one box around its centre."""

    detector_family = GridFamily()

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        shape = self.backbone.output_shape()["res5"]
        self.stride, self.num_classes = shape.stride, self.class_count(cfg)
        self.head = nn.Conv2d(shape.channels, self.num_classes + 4, 1)
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1))
        self.min_score = cfg.MODEL.GRID.MIN_SCORE
        self.most = cfg.TEST.DETECTIONS_PER_IMAGE

    def class_count(self, cfg):
        return cfg.MODEL.GRID.NUM_CLASSES

    def forward(self, batch):
        images = [(image["image"].to(self.mean.device) - self.mean) / 60 for image in batch]
        images = ImageList.from_tensors(images, self.backbone.size_divisibility)
        predictions = self.head(self.backbone(images.tensor)["res5"])
        cells = predictions.shape[-2:]
        logits, sides = predictions.flatten(2).mT.float().split([self.num_classes, 4], dim=2)
        if self.training:
            truth = GroundTruth.from_instances([x["instances"] for x in batch], logits.device)
            match = self.match(truth, cells)
            target = F.one_hot(match.labels, self.num_classes + 1)[..., :-1].float()
            loss = F.binary_cross_entropy_with_logits(logits, target)
            positive = (match.labels < self.num_classes)[..., None]
            return {"loss_cls": loss, "loss_box_reg": ((sides - 1).abs() * positive).mean()}
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in cells), indexing="ij")
        centre = torch.stack((x, y), dim=-1).flatten(0, 1).to(sides) * self.stride
        half = sides.sigmoid() * 64
        boxes = torch.cat((centre - half[..., :2], centre + half[..., 2:]), dim=-1)
        results = []
        for scores, own, image, size in zip(
            logits.sigmoid(), boxes, batch, images.image_sizes, strict=True
        ):
            found = self.select(scores, own, size)
            size = image.get("height", size[0]), image.get("width", size[1])
            results.append({"instances": detector_postprocess(found, *size)})
        return results

    def match(self, truth, cells):
        """Give each object the cell of its centre."""
        height, width = cells
        centre = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2 / self.stride
        x, y = centre[..., 0].long().clamp(0, width - 1), centre[..., 1].long().clamp(0, height - 1)
        index = y * width + x
        labels = index.new_full((len(index), height * width + 1), self.num_classes)
        labels.scatter_(1, index.where(truth.valid, height * width), truth.classes)
        objects = torch.arange(index.shape[1], device=index.device).expand_as(index)
        return MatchResult(labels[:, :-1], index, objects, truth.valid)

    def select(self, scores, boxes, size):
        cell, classes = (scores > self.min_score).nonzero().unbind(1)
        order = scores[cell, classes].argsort(descending=True)[: self.most]
        cell, classes = cell[order], classes[order]
        found = Instances(size, pred_boxes=Boxes(boxes[cell]), pred_classes=classes)
        found.scores = scores[cell, classes]
        return found


@META_ARCH_REGISTRY.register()
class Undeclared(GridDetector):
    """As if it had been written before there were families: its class count is RetinaNet's."""

    detector_family = DetectorFamily()

    def class_count(self, cfg):
        return cfg.MODEL.RETINANET.NUM_CLASSES
