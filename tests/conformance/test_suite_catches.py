"""Each check must fail for a part that is broken in just that way, and say how.

One sound part per slot passes everything; each broken part is a sound one with one fault.
"""

from __future__ import annotations

import dataclasses
import re
import unittest

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from yolof_d2.conformance import SLOTS, WAIVABLE, Case, ConformanceError, find_cases
from yolof_d2.modeling import Decoder, DetectionLoss, Encoder, Matcher, MatchResult

# Sound parts.


class SoundEncoder(Encoder):
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


class SoundHalvingEncoder(SoundEncoder):
    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature)[:, :, ::2, ::2]

    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=16, stride=64)


class SoundDecoder(Decoder):
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
        output = self.in_order(self.tower(feature).float()).flatten(1, 3)
        return output[..., : self.num_classes], output[..., self.num_classes :]

    def in_order(self, output: Tensor) -> Tensor:
        """(N, A * (K + 4), H, W) to (N, H, W, A, K + 4)."""
        num_images, _, height, width = output.shape
        output = output.view(num_images, -1, self.num_classes + 4, height, width)
        return output.permute(0, 3, 4, 1, 2)


class SoundMatcher(Matcher):
    """The nearest anchor for each object."""

    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        self.num_classes = cfg.MODEL.YOLOF.NUM_CLASSES

    @torch.no_grad()
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth) -> MatchResult:
        num_images, num_anchors = pred_boxes.shape[:2]
        valid = ground_truth.valid
        anchor_idx = self.distance(ground_truth.boxes, anchors).argmin(dim=2)  # (N, M)
        gt_idx = torch.arange(valid.shape[1], device=valid.device).expand(num_images, -1)
        labels = anchor_idx.new_full((num_images, num_anchors + 1), self.num_classes)
        written = torch.where(valid, anchor_idx, num_anchors)  # padding: past the last anchor
        labels = labels.scatter(1, written, ground_truth.classes)[:, :-1]
        return MatchResult(labels, anchor_idx, gt_idx, valid)

    def distance(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return torch.cdist(boxes, anchors.expand(len(boxes), -1, -1), p=1)


class SoundLoss(DetectionLoss):
    def __init__(self, cfg):
        pass

    def __call__(self, anchors, pred_logits, pred_boxes, match, ground_truth) -> dict[str, Tensor]:
        labels = match.labels[..., None]
        targets = (labels == torch.arange(pred_logits.shape[-1], device=labels.device)).float()
        loss_cls = self.classification(pred_logits, targets, labels)
        loss_box = self.box(*self.pairs(pred_boxes, match, ground_truth), match)
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box}

    def pairs(self, pred_boxes, match, ground_truth) -> tuple[Tensor, Tensor]:
        predicted = pred_boxes.gather(1, match.pair_anchor_idx[..., None].expand(-1, -1, 4))
        true = ground_truth.boxes.gather(1, match.pair_gt_idx[..., None].expand(-1, -1, 4))
        return predicted, true

    def classification(self, logits, targets, labels) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return loss.masked_fill(labels == -1, 0).mean()

    def box(self, predicted, true, match) -> Tensor:
        distance = (predicted - true).abs().sum(dim=-1) * match.pair_mask
        return distance.sum() / match.pair_mask.sum().clamp(min=1)


class SoundBackbone(Backbone):
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


SOUND = {
    "encoder": [SoundEncoder, SoundHalvingEncoder],
    "decoder": [SoundDecoder],
    "matcher": [SoundMatcher],
    "loss": [SoundLoss],
    "backbone": [SoundBackbone],
}

# Broken encoders: also what any nn.Module can do wrong.


class NoEncoder(nn.Conv2d):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(input_shape.channels, 16, 1)


class DeclaresNoSpec(SoundEncoder):
    def output_shape(self):
        return {"channels": 16, "stride": 32}


class StrideIsAFraction(SoundEncoder):
    def output_shape(self):
        return ShapeSpec(channels=16, stride=32.0)


class CannotBeBuilt(SoundEncoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        raise KeyError("MODEL.YOLOF.ENCODER.MINE")


class WaivesWhatItMust(SoundEncoder):
    not_promised = {"output_is_finite": "it is hard"}


class DeclaresOtherChannels(SoundEncoder):
    def output_shape(self):
        return ShapeSpec(channels=17, stride=32)


class DeclaresOtherStride(SoundHalvingEncoder):
    def output_shape(self):
        return ShapeSpec(channels=16, stride=32)


class LosesARow(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature)[:, :, 1:]


class LosesTheBatch(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature).squeeze(0)


class NeedsTwoCells(SoundEncoder):
    def forward(self, feature):
        return F.pad(super().forward(feature), (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]


class ReturnsAList(SoundEncoder):
    def forward(self, feature):
        return [super().forward(feature)]


class TakesALogarithm(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature).relu().log()


class HasADeadParameter(SoundEncoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.unused = nn.Conv2d(16, 16, 1)


class HasAnInertParameter(SoundEncoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.inert = nn.Parameter(torch.ones(1))

    def forward(self, feature):
        return super().forward(feature) + 0 * self.inert


class SkipsAParameterInTraining(HasADeadParameter):
    def forward(self, feature):
        feature = super().forward(feature)
        return feature if self.training else self.unused(feature)


class DetachesTheInput(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature.detach())


class DetachesTheOutput(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature).detach()


class DropsOutAlways(SoundEncoder):
    def forward(self, feature):
        return F.dropout(super().forward(feature), 0.1, training=True)


class WritesIntoTheInput(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature.relu_() if not feature.requires_grad else feature)


class WritesIntoTheInputInTraining(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature.mul_(2) if self.training else feature)


class NormalisesOverTheBatch(SoundEncoder):
    def forward(self, feature):
        return F.batch_norm(super().forward(feature), None, None, training=True)


class MixesTypes(SoundEncoder):
    def forward(self, feature):
        feature = self.conv(feature)
        with torch.autocast("cpu", enabled=False):
            return self.norm(F.conv2d(feature, self.conv.weight[:, :16], padding=1))


class MixesTypesInEvaluation(MixesTypes):
    def forward(self, feature):
        return SoundEncoder.forward(self, feature) if self.training else super().forward(feature)


class OverflowsInHalf(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature.to(self.conv(feature).dtype) * 1e5) * 1e-5


class HidesATensor(SoundEncoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.position = torch.randn(16, 1, 1)

    def forward(self, feature):
        return super().forward(feature) + self.position


class HidesStatistics(SoundEncoder):
    mean = 0.0

    def forward(self, feature):
        feature = super().forward(feature)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * float(feature.detach().mean()) + 1
        return feature - self.mean


class MakesAParameterOnTheWay(SoundEncoder):
    def forward(self, feature):
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(1))
        return super().forward(feature) * self.late


class KeepsALambda(SoundEncoder):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.activation = lambda x: x


class KeepsItsOutput(SoundEncoder):
    def forward(self, feature):
        with torch.enable_grad():
            self.last = super().forward(feature)
        return self.last


class ForgetsAHook(SoundEncoder):
    def __deepcopy__(self, memo):
        return SoundEncoder(None, ShapeSpec(channels=64, stride=32)).eval()


class ForgetsItsScale(SoundEncoder):
    def __deepcopy__(self, memo):
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        nn.init.zeros_(self.scale)


class BakesTheWidth(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature) / int(feature.shape[-1])


class BakesTheBatch(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature).view(int(feature.shape[0]), 16, *feature.shape[2:])


class RefusesTracing(SoundEncoder):
    def forward(self, feature):
        if torch.jit.is_tracing():
            raise NotImplementedError("no tracing")
        return super().forward(feature)


class AsksForAValue(SoundEncoder):
    def forward(self, feature):
        return super().forward(feature) * (2.0 if bool(feature.sum() > 0) else 1.0)


class StaysOnTheCpu(SoundEncoder):
    def forward(self, feature):
        return torch.zeros(super().forward(feature).shape) + self.scale.new_ones(1, device="cpu")


# Broken decoders.


class NoDecoder(nn.Module):
    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        super().__init__()


class ReturnsOneTensor(SoundDecoder):
    def forward(self, feature):
        return torch.cat(super().forward(feature), dim=-1)


class KeepsTheMap(SoundDecoder):
    def forward(self, feature):
        return tuple(value[:, None] for value in super().forward(feature))


class SwapsItsOutputs(SoundDecoder):
    def forward(self, feature):
        return super().forward(feature)[::-1]


class ReturnsDoubles(SoundDecoder):
    def forward(self, feature):
        return tuple(value.double() for value in super().forward(feature))


class SqueezesOneClass(SoundDecoder):
    def forward(self, feature):
        logits, deltas = super().forward(feature)
        return logits.squeeze(-1), deltas


class AnchorsFirst(SoundDecoder):
    def in_order(self, output):
        return super().in_order(output).permute(0, 3, 1, 2, 4)


class WidthFirst(SoundDecoder):
    def in_order(self, output):
        return super().in_order(output).transpose(1, 2)


class StaysInHalf(SoundDecoder):
    def forward(self, feature):
        output = self.in_order(self.tower(feature)).flatten(1, 3)
        return output[..., : self.num_classes], output[..., self.num_classes :]


# Broken matchers.


class NoMatcher:
    def __init__(self, cfg, input_shape: ShapeSpec, num_anchors: int):
        pass


class Corrupted(SoundMatcher):
    """A sound match with some fields replaced by :meth:`corrupt`."""

    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        match = super().__call__(anchors, pred_logits, pred_boxes, ground_truth)
        return dataclasses.replace(match, **self.corrupt(match, pred_boxes, ground_truth))


class ReturnsATuple(SoundMatcher):
    def __call__(self, *inputs):
        return tuple(vars(super().__call__(*inputs)).values())


class ReturnsInt32(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"labels": match.labels.int()}


class MaskIsANumber(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"pair_mask": match.pair_mask.float()}


class LabelsHaveAnExtraDimension(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"labels": match.labels[..., None]}


class PairsOfDifferentLength(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"pair_gt_idx": match.pair_gt_idx.repeat(1, 2)}


class NeedsNineAnchors(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        self.distance(ground_truth.boxes, anchors).topk(9, dim=2)
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class NeedsAnObject(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        ground_truth.boxes[ground_truth.valid].amax()
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class BackgroundIs80(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"labels": match.labels.masked_fill(match.labels == self.num_classes, 80)}


class PointsPastTheLastAnchor(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        past = pred_boxes.shape[1]
        return {"pair_anchor_idx": match.pair_anchor_idx.masked_fill(~match.pair_mask, past)}


class PointsBeforeTheFirstObject(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"pair_gt_idx": match.pair_gt_idx.masked_fill(~match.pair_mask, -1)}


class MatchesNothing(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        background = torch.full_like(match.labels, self.num_classes)
        return {"labels": background, "pair_mask": match.pair_mask & False}


class MasksEveryPair(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"pair_mask": match.pair_mask & False}


class AlwaysHasAPositive(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        labels = match.labels.clone()
        labels[:, 0] = ground_truth.classes[:, 0]
        return {"labels": labels}


class CountsPadding(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        some = ground_truth.valid.any(dim=1, keepdim=True)  # not where nothing is: only beside it
        return {"pair_mask": some.expand_as(match.pair_mask)}


class TakesClassesOfTheNextImage(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        shifted = (match.labels + 1) % self.num_classes
        return {"labels": shifted.where(match.labels < self.num_classes, match.labels)}


class PairsBackground(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        first = torch.zeros_like(match.pair_anchor_idx)
        return {"pair_anchor_idx": first}


class DropsTheLargestOfTheBatch(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        size = ground_truth.boxes[..., 2] - ground_truth.boxes[..., 0]
        return {"pair_mask": match.pair_mask & (size < size.amax())}


class DropsTheLastSlot(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        mask = match.pair_mask.clone()
        mask[:, 1:] &= torch.arange(1, mask.shape[1]) < mask.shape[1] - 1
        return {"pair_mask": mask}


class MatchesByChance(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"pair_mask": match.pair_mask & (torch.rand(match.pair_mask.shape) < 0.5)}


class MeasuresByMatmul(SoundMatcher):
    def distance(self, boxes, anchors):
        squares = boxes.square().sum(-1)[..., None] + anchors.square().sum(-1)
        return squares - 2 * boxes @ anchors.T


class KeepsAGraph(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        pred_boxes.square().sum()
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class ClipsTheObjects(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        ground_truth.boxes.clamp_(max=100)
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class SharpensTheScores(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        pred_logits.sigmoid_()
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class RefusesNan(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        if not pred_boxes.isfinite().all():
            raise ValueError("matrix contains invalid numeric entries")
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class CountsWithNan(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        finite = pred_boxes.isfinite().all(dim=-1).gather(1, match.pair_anchor_idx)
        return {"pair_anchor_idx": match.pair_anchor_idx.masked_fill(~finite, 2**40)}


class IndexesByAMask(SoundMatcher):
    def __call__(self, anchors, pred_logits, pred_boxes, ground_truth):
        ground_truth.boxes[ground_truth.valid]
        return super().__call__(anchors, pred_logits, pred_boxes, ground_truth)


class ReturnsToTheHost(Corrupted):
    def corrupt(self, match, pred_boxes, ground_truth):
        return {"labels": torch.zeros(match.labels.shape, dtype=torch.int64)}


# Broken losses.


class NoLoss:
    def __init__(self, cfg):
        pass


class ReturnsASum(SoundLoss):
    def __call__(self, *inputs):
        return sum(super().__call__(*inputs).values())


class LossPerImage(SoundLoss):
    def classification(self, logits, targets, labels):
        return super().classification(logits, targets, labels).expand(len(logits))


class LossIsANumber(SoundLoss):
    def box(self, predicted, true, match):
        return float(super().box(predicted, true, match))


class LossIsDouble(SoundLoss):
    def box(self, predicted, true, match):
        return super().box(predicted, true, match).double()


class LossNeedsAPair(SoundLoss):
    def box(self, predicted, true, match):
        return super().box(predicted, true, match) + 0 * predicted[match.pair_mask].amax()


class DividesByPairs(SoundLoss):
    def box(self, predicted, true, match):
        return (predicted - true).abs().sum(-1)[match.pair_mask].mean()


class OverflowsOnHugeBoxes(SoundLoss):
    def box(self, predicted, true, match):
        return super().box(predicted.square() ** 4, true, match)


class RewardsOverlap(SoundLoss):
    def box(self, predicted, true, match):
        return super().box(predicted, true, match) - 1000


class RootOfTheArea(SoundLoss):
    def box(self, predicted, true, match):
        size = (predicted[..., 2:] - predicted[..., :2]).clamp(min=0).prod(dim=-1).sqrt()
        return super().box(predicted, true, match) + 0 * (size * match.pair_mask).sum()


class RootOfTheDistance(SoundLoss):
    def box(self, predicted, true, match):
        distance = (predicted - true).square().sum(dim=-1).sqrt() * match.pair_mask
        return distance.sum() / match.pair_mask.sum().clamp(min=1)


class LeavesTheGraph(SoundLoss):
    def box(self, predicted, true, match):
        if not match.pair_mask.any():
            return torch.zeros(())
        return super().box(predicted, true, match)


class SwapsTheTargets(SoundLoss):
    def classification(self, logits, targets, labels):
        return super().classification(logits, 1 - targets, labels)


class FleesFromTheObject(SoundLoss):
    def box(self, predicted, true, match):
        return (-super().box(predicted, true, match) / 1000).exp()


class LearnsFromIgnored(SoundLoss):
    def classification(self, logits, targets, labels):
        return super().classification(logits, targets, labels.clamp(min=0))


class ForgetsTheMask(SoundLoss):
    def box(self, predicted, true, match):
        everything = dataclasses.replace(match, pair_mask=torch.ones_like(match.pair_mask))
        return super().box(predicted, true, everything)


class AveragesOverPadding(SoundLoss):
    def box(self, predicted, true, match):
        return ((predicted - true).abs().sum(dim=-1) * match.pair_mask).mean()


class SamplesNegatives(SoundLoss):
    def classification(self, logits, targets, labels):
        kept = torch.rand(labels.shape, device=labels.device) < 0.5
        return super().classification(logits, targets, torch.where(kept, labels, -1))


class SumsByMatmul(SoundLoss):
    def box(self, predicted, true, match):
        distance = (predicted - true).abs().sum(dim=-1)
        weight = match.pair_mask.float() / match.pair_mask.sum().clamp(min=1)
        return (distance[:, None] @ weight[:, :, None]).float().sum()


class RelabelsInPlace(SoundLoss):
    def __call__(self, anchors, pred_logits, pred_boxes, match, ground_truth):
        losses = super().__call__(anchors, pred_logits, pred_boxes, match, ground_truth)
        match.labels.clamp_(min=0)
        return losses


class CountsOnTheHost(SoundLoss):
    def box(self, predicted, true, match):
        distance = (predicted - true).abs().sum(dim=-1) * match.pair_mask
        return distance.sum() / max(1, int(match.pair_mask.sum()))


class MixesDevices(SoundLoss):
    def classification(self, logits, targets, labels):
        return torch.zeros((), requires_grad=True)


class ReturnsLossesOnTheHost(SoundLoss):
    def __call__(self, *inputs):
        return {"loss": torch.zeros((), requires_grad=True)}


# Broken backbones.


class NoBackbone(nn.Module):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()


class DeclaresNothing(SoundBackbone):
    def output_shape(self):
        return {}


class DeclaresNoStride(SoundBackbone):
    def output_shape(self):
        return {"half": ShapeSpec(channels=8), "quarter": ShapeSpec(channels=8)}


class RenamesAFeature(SoundBackbone):
    def forward(self, images):
        half, quarter = super().forward(images).values()
        return {"half": half, "res3": quarter}


class DeclaresOtherFeatureChannels(SoundBackbone):
    def output_shape(self):
        return {**super().output_shape(), "quarter": ShapeSpec(channels=9, stride=4)}


class DeclaresOtherFeatureStride(SoundBackbone):
    def output_shape(self):
        return {**super().output_shape(), "quarter": ShapeSpec(channels=8, stride=8)}


class NeedsEvenImages(SoundBackbone):
    def forward(self, images):
        return super().forward(F.pixel_shuffle(F.pixel_unshuffle(images, 2), 2))


class ReturnsFeaturesInAList(SoundBackbone):
    def forward(self, images):
        return list(super().forward(images).values())


class HasADeadStage(SoundBackbone):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.res6 = nn.Conv2d(8, 8, 1)


FLOAT16, BFLOAT16 = "works_under_float16_autocast", "works_under_bfloat16_autocast"

# Slot, broken part, the check that must fail, and what its sentence must say.
BROKEN = [
    ("encoder", NoEncoder, "is_an_encoder", "it is a NoEncoder; wanted an Encoder"),
    ("encoder", DeclaresNoSpec, "is_an_encoder", "returned a dict; wanted a ShapeSpec"),
    ("encoder", StrideIsAFraction, "is_an_encoder", "stride is 32.0; wanted a positive whole"),
    ("encoder", CannotBeBuilt, "is_an_encoder", "could not be built: KeyError: 'MODEL.YOLOF.ENC"),
    ("encoder", WaivesWhatItMust, "is_an_encoder", "names ['output_is_finite']; only these can"),
    (
        "encoder",
        DeclaresOtherChannels,
        "output_has_the_declared_shape",
        "shape [1, 16, 1, 1]; wanted [1, 17, H, W]",
    ),
    (
        "encoder",
        DeclaresOtherStride,
        "output_has_the_declared_shape",
        "1 x 7 cells of 32 pixels became 1 x 4; the declared stride of 32 gives 7 in place of 4",
    ),
    ("encoder", LosesARow, "output_has_the_declared_shape", "stride of 32 gives 1 in place of 0"),
    ("encoder", LosesTheBatch, "output_has_the_declared_shape", "shape [16, 1, 1]"),
    ("encoder", NeedsTwoCells, "output_has_the_declared_shape", "raised an error: RuntimeError"),
    ("encoder", ReturnsAList, "output_has_the_declared_shape", "returned a list; wanted one"),
    ("encoder", TakesALogarithm, "output_is_finite", "infinite or NaN in training; wanted none"),
    (
        "encoder",
        HasADeadParameter,
        "gradients_reach_every_parameter",
        "in training 2 (unused.weight, unused.bias) of 7 parameters get no gradient",
    ),
    (
        "encoder",
        HasAnInertParameter,
        "gradients_reach_every_parameter",
        "1 (inert) of 6 parameters always get a gradient of zero",
    ),
    (
        "encoder",
        SkipsAParameterInTraining,
        "gradients_reach_every_parameter",
        "in training 2 (unused.weight, unused.bias) of 7 parameters get no gradient",
    ),
    (
        "encoder",
        DetachesTheInput,
        "gradients_reach_every_parameter",
        "no gradient reaches the input",
    ),
    ("encoder", DetachesTheOutput, "gradients_reach_every_parameter", "has no gradient at all"),
    ("encoder", DropsOutAlways, "evaluation_is_deterministic", "two runs on the same input differ"),
    ("encoder", WritesIntoTheInput, "input_is_left_alone", "in training the input was changed"),
    ("encoder", WritesIntoTheInputInTraining, "input_is_left_alone", "in training the input was"),
    (
        "encoder",
        NormalisesOverTheBatch,
        "images_do_not_depend_on_their_batch",
        "an image alone and the same image in a batch differ: output differs by",
    ),
    (
        "encoder",
        LosesTheBatch,
        "images_do_not_depend_on_their_batch",
        "output has shape [16, 13, 9] in place of [1, 16, 13, 9]",
    ),
    ("encoder", MixesTypes, BFLOAT16, "raised an error: RuntimeError"),
    ("encoder", MixesTypesInEvaluation, FLOAT16, "raised an error: RuntimeError"),
    ("encoder", OverflowsInHalf, FLOAT16, "in training under torch.float16 autocast"),
    (
        "encoder",
        HidesATensor,
        "weights_survive_saving_and_loading",
        "a newly built part with the saved weights differs",
    ),
    ("encoder", HidesStatistics, "weights_survive_saving_and_loading", "saved weights differs"),
    (
        "encoder",
        MakesAParameterOnTheWay,
        "weights_survive_saving_and_loading",
        "does not take the saved weights: RuntimeError",
    ),
    ("encoder", KeepsALambda, "can_be_copied_and_pickled", "pickling failed"),
    ("encoder", KeepsItsOutput, "can_be_copied_and_pickled", "copy.deepcopy failed: RuntimeError"),
    ("encoder", ForgetsAHook, "can_be_copied_and_pickled", "a deep copy differs: output differs"),
    ("encoder", ForgetsItsScale, "can_be_copied_and_pickled", "the pickled part differs: output"),
    ("encoder", BakesTheWidth, "can_be_traced", "it is wrong for two of (8, 11)"),
    ("encoder", BakesTheBatch, "can_be_traced", "it fails at another size: RuntimeError"),
    ("encoder", RefusesTracing, "can_be_traced", "torch.jit.trace failed: NotImplementedError"),
    ("encoder", AsksForAValue, "never_waits_for_the_device", "it reads a value on the host"),
    ("encoder", HidesATensor, "never_waits_for_the_device", "or mixes devices"),
    ("encoder", StaysOnTheCpu, "never_waits_for_the_device", "output is on cpu; wanted the"),
    ("decoder", NoDecoder, "is_a_decoder", "it is a NoDecoder; wanted a Decoder"),
    ("decoder", ReturnsOneTensor, "each_anchor_gets_its_outputs", "returned a Tensor; wanted the"),
    (
        "decoder",
        KeepsTheMap,
        "each_anchor_gets_its_outputs",
        "logits are torch.float32 of shape [1, 1, 3, 3] for 1 maps of 1 x 1 cells, A = 3 and "
        "K = 3; wanted float32 of shape [1, 3, 3]",
    ),
    ("decoder", SwapsItsOutputs, "each_anchor_gets_its_outputs", "shape [1, 3, 4] for"),
    ("decoder", ReturnsDoubles, "each_anchor_gets_its_outputs", "logits are torch.float64"),
    (
        "decoder",
        SqueezesOneClass,
        "one_class_and_one_anchor_keep_their_dimensions",
        "shape [2, 117] for",
    ),
    (
        "decoder",
        AnchorsFirst,
        "anchors_come_in_the_order_of_the_generator",
        "depend most on (7, 10); wanted that they depend most on (1, 10)",
    ),
    (
        "decoder",
        WidthFirst,
        "anchors_come_in_the_order_of_the_generator",
        "the outputs at the place of (1, 1) in the order (H, W, A) look at none of them",
    ),
    ("decoder", StaysInHalf, BFLOAT16, "logits is torch.bfloat16 under torch.bfloat16 autocast"),
    ("decoder", StaysInHalf, FLOAT16, "wanted float32 always"),
    ("matcher", NoMatcher, "is_a_matcher", "it is a NoMatcher; wanted a Matcher"),
    (
        "matcher",
        ReturnsATuple,
        "result_has_the_documented_types_and_shapes",
        "returned a tuple; wanted a MatchResult",
    ),
    (
        "matcher",
        ReturnsInt32,
        "result_has_the_documented_types_and_shapes",
        "labels is torch.int32 with an ordinary batch; wanted torch.int64",
    ),
    (
        "matcher",
        MaskIsANumber,
        "result_has_the_documented_types_and_shapes",
        "pair_mask is torch.float32",
    ),
    (
        "matcher",
        LabelsHaveAnExtraDimension,
        "result_has_the_documented_types_and_shapes",
        "labels has shape [3, 144, 1] with an ordinary batch; wanted [3, 144]",
    ),
    (
        "matcher",
        PairsOfDifferentLength,
        "result_has_the_documented_types_and_shapes",
        "pair_gt_idx has shape [3, 6]",
    ),
    (
        "matcher",
        NeedsNineAnchors,
        "result_has_the_documented_types_and_shapes",
        "with more objects than anchors it failed: RuntimeError",
    ),
    (
        "matcher",
        NeedsAnObject,
        "result_has_the_documented_types_and_shapes",
        "with no object in the batch it failed",
    ),
    (
        "matcher",
        BackgroundIs80,
        "labels_and_indices_are_in_range",
        "labels holds [80] with an ordinary batch; wanted -1 to 3",
    ),
    (
        "matcher",
        PointsPastTheLastAnchor,
        "labels_and_indices_are_in_range",
        "pair_anchor_idx holds [144]",
    ),
    (
        "matcher",
        PointsBeforeTheFirstObject,
        "labels_and_indices_are_in_range",
        "pair_gt_idx holds [-1]",
    ),
    ("matcher", MatchesNothing, "objects_get_anchors", "has 0 positive anchors and 0 pairs"),
    ("matcher", MasksEveryPair, "objects_get_anchors", "positive anchors and 0 pairs"),
    (
        "matcher",
        AlwaysHasAPositive,
        "images_without_objects_have_no_positives",
        "image 1, without objects, has 1 positive anchors and 0 pairs",
    ),
    ("matcher", CountsPadding, "padding_is_in_no_pair", "2 pairs that count have padding"),
    (
        "matcher",
        TakesClassesOfTheNextImage,
        "positives_have_the_class_of_an_object_of_their_image",
        "has positives of classes",
    ),
    (
        "matcher",
        PairsBackground,
        "paired_anchors_are_not_background",
        "have an anchor labelled background with an ordinary batch; wanted a class",
    ),
    (
        "matcher",
        DropsTheLargestOfTheBatch,
        "images_do_not_depend_on_their_batch",
        "in its batch with an ordinary batch, differ in the pairs",
    ),
    ("matcher", DropsTheLastSlot, "padding_changes_nothing", "with less (an ordinary batch), diff"),
    ("matcher", MatchesByChance, "matching_is_deterministic", "in two runs on the same input"),
    ("matcher", MeasuresByMatmul, "matching_is_the_same_under_autocast", "under autocast, and"),
    ("matcher", KeepsAGraph, "builds_no_graph", "1 tensors were kept for a backward pass"),
    (
        "matcher",
        ClipsTheObjects,
        "inputs_are_left_alone",
        "ground_truth.boxes was changed in place with an ordinary batch",
    ),
    ("matcher", SharpensTheScores, "inputs_are_left_alone", "pred_logits was changed in place"),
    (
        "matcher",
        RefusesNan,
        "survives_predictions_that_are_not_finite",
        "that are infinite or NaN it failed: ValueError: matrix contains",
    ),
    (
        "matcher",
        CountsWithNan,
        "survives_predictions_that_are_not_finite",
        "holds values outside [0, 144)",
    ),
    ("matcher", IndexesByAMask, "never_waits_for_the_device", "it reads a value on the host"),
    ("matcher", ReturnsToTheHost, "never_waits_for_the_device", "labels is on cpu"),
    ("loss", NoLoss, "is_a_loss", "it is a NoLoss; wanted a DetectionLoss"),
    ("loss", ReturnsASum, "losses_are_named_scalars", "it returned Tensor"),
    ("loss", LossPerImage, "losses_are_named_scalars", "loss_cls is torch.float32 of shape [3]"),
    ("loss", LossIsANumber, "losses_are_named_scalars", "loss_box_reg is a float with"),
    ("loss", LossIsDouble, "losses_are_named_scalars", "is torch.float64 of shape []"),
    ("loss", LossNeedsAPair, "losses_are_named_scalars", "with no object in the batch it failed"),
    (
        "loss",
        DividesByPairs,
        "losses_are_finite_and_not_negative",
        "loss_box_reg has 1 values that are infinite or NaN with no object in the batch",
    ),
    ("loss", LossNeedsAPair, "losses_are_finite_and_not_negative", "in the batch it failed: Run"),
    ("loss", OverflowsOnHugeBoxes, "losses_are_finite_and_not_negative", "of huge size"),
    ("loss", RewardsOverlap, "losses_are_finite_and_not_negative", "wanted 0 or more"),
    ("loss", RootOfTheArea, "gradients_are_finite", "with predictions of no size"),
    ("loss", RootOfTheDistance, "gradients_are_finite", "with the right answer as prediction"),
    (
        "loss",
        LeavesTheGraph,
        "logits_and_boxes_are_always_in_the_graph",
        "the boxes get no gradient with no object in the batch",
    ),
    ("loss", SwapsTheTargets, "prefers_the_right_answer", "right logits cost"),
    ("loss", FleesFromTheObject, "prefers_the_right_answer", "right boxes cost"),
    (
        "loss",
        LearnsFromIgnored,
        "ignored_anchors_have_no_say_in_classification",
        "ignored anchors get a gradient for their logits with an ordinary batch; wanted none",
    ),
    ("loss", ForgetsTheMask, "only_pairs_that_count_train_boxes", "or in masked pairs only, get"),
    ("loss", AveragesOverPadding, "padding_changes_nothing", "changes the result: loss_box_reg"),
    ("loss", SamplesNegatives, "loss_is_deterministic", "two new parts differ on the same input"),
    ("loss", SumsByMatmul, "loss_is_the_same_under_autocast", "changes under autocast: loss_box"),
    ("loss", RelabelsInPlace, "inputs_are_left_alone", "match.labels was changed in place"),
    ("loss", CountsOnTheHost, "never_waits_for_the_device", "it reads a value on the host"),
    ("loss", MixesDevices, "never_waits_for_the_device", "or mixes devices"),
    ("loss", ReturnsLossesOnTheHost, "never_waits_for_the_device", "loss is on cpu; wanted the"),
    ("backbone", NoBackbone, "is_a_backbone", "it is a NoBackbone; wanted a Backbone"),
    ("backbone", DeclaresNothing, "is_a_backbone", "output_shape() is {}; wanted channels"),
    ("backbone", DeclaresNoStride, "is_a_backbone", "stride=None"),
    (
        "backbone",
        RenamesAFeature,
        "features_have_the_declared_shapes",
        "gives ['half', 'res3']; output_shape() says ['half', 'quarter']",
    ),
    (
        "backbone",
        DeclaresOtherFeatureChannels,
        "features_have_the_declared_shapes",
        "wanted [1, 9, H, W]",
    ),
    (
        "backbone",
        DeclaresOtherFeatureStride,
        "features_have_the_declared_shapes",
        "32 x 32 cells of 1 pixels became 8 x 8; the declared stride of 8 gives 4 in place of 8",
    ),
    ("backbone", NeedsEvenImages, "features_have_the_declared_shapes", "raised an error"),
    ("backbone", ReturnsFeaturesInAList, "features_have_the_declared_shapes", "returned a list"),
    ("backbone", HasADeadStage, "gradients_reach_every_parameter", "(res6.weight, res6.bias) of 6"),
]


@pytest.fixture
def case_of(monkeypatch):
    """Register a part for the length of one test, and find a check of it."""

    def find(slot: str, part: type, check: str) -> Case:
        registry = SLOTS[slot].registry
        monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map, part.__name__: part})
        cases = find_cases(part=f"{slot}/{part.__name__}")
        (case,) = [case for case in cases if case.check.__name__ == check]
        return case

    return find


SOUND_CASES = [
    (slot, part, check.__name__)
    for slot, parts in SOUND.items()
    for part in parts
    for check in SLOTS[slot].checks
]


@pytest.mark.parametrize(("slot", "part", "check"), SOUND_CASES)
def test_a_sound_part_passes_every_check(case_of, slot, part, check):
    case_of(slot, part, check).run()


@pytest.mark.parametrize(
    ("slot", "part", "check", "sentence"),
    BROKEN,
    ids=[f"{slot}-{part.__name__}-{check}" for slot, part, check, _ in BROKEN],
)
def test_a_broken_part_fails_and_hears_why(case_of, slot, part, check, sentence):
    with pytest.raises(ConformanceError, match=re.escape(sentence)):
        case_of(slot, part, check).run()


def test_every_check_has_a_part_that_it_catches():
    caught = {
        check
        for slot, _, name, _ in BROKEN
        for check in SLOTS[slot].checks
        if check.__name__ == name
    }
    slots = [slot for name, slot in SLOTS.items() if name != "meta_arch"]  # test_meta_arch.py
    assert {check for slot in slots for check in slot.checks} == caught


def test_every_check_that_can_be_waived_exists():
    names = {check.__name__ for slot in SLOTS.values() for check in slot.checks}
    assert names >= WAIVABLE


@pytest.mark.parametrize(
    ("slot", "base", "check"),
    [
        ("encoder", BakesTheWidth, "can_be_traced"),
        ("encoder", AsksForAValue, "never_waits_for_the_device"),
        ("decoder", WidthFirst, "anchors_come_in_the_order_of_the_generator"),
        ("matcher", RefusesNan, "survives_predictions_that_are_not_finite"),
        ("matcher", IndexesByAMask, "never_waits_for_the_device"),
    ],
)
def test_what_a_part_does_not_promise_is_skipped_with_its_reason(case_of, slot, base, check):
    part = type(f"Frank{base.__name__}", (base,), {"not_promised": {check: "by design"}})
    with pytest.raises(unittest.SkipTest, match="by design"):
        case_of(slot, part, check).run()
    first = SLOTS[slot].checks[0].__name__
    case_of(slot, part, first).run()


def test_a_check_leaves_the_random_state_alone_and_repeats_itself(case_of):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    messages = []
    for _ in range(2):
        with pytest.raises(ConformanceError) as error:
            case_of("encoder", DropsOutAlways, "evaluation_is_deterministic").run()
        messages.append(str(error.value))
        torch.rand(3)  # what came before does not matter
    assert messages[0] == messages[1]
    torch.set_rng_state(state)
    case_of("encoder", SoundEncoder, "output_is_finite").run()
    assert torch.equal(torch.get_rng_state(), state)
