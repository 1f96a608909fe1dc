from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.conformance.slots import SlotTests, breaks
from yolof_d2.modeling import DetectionLoss


class Sound(DetectionLoss):
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
        return mean((predicted - true).abs().sum(dim=-1), match)


class NoLoss:
    def __init__(self, cfg):
        pass


def mean(distance: Tensor, match) -> Tensor:
    """Over the pairs that count."""
    return (distance * match.pair_mask).sum() / match.pair_mask.sum().clamp(min=1)


calls = breaks(Sound, "__call__")
classification = breaks(Sound, "classification")
box = breaks(Sound, "box")
needs_a_pair = box(lambda self, sound, p, t, m: sound(p, t, m) + 0 * p[m.pair_mask].amax())


def roots_the_area(self, sound, predicted, true, match):
    size = (predicted[..., 2:] - predicted[..., :2]).clamp(min=0).prod(dim=-1).sqrt()
    return sound(predicted, true, match) + 0 * (size * match.pair_mask).sum()


def forgets_the_mask(self, sound, predicted, true, match):
    everything = torch.ones_like(match.pair_mask)
    return sound(predicted, true, dataclasses.replace(match, pair_mask=everything))


def samples_negatives(self, sound, logits, targets, labels):
    kept = torch.rand(labels.shape, device=labels.device) < 0.5
    return sound(logits, targets, torch.where(kept, labels, -1))


def sums_by_matmul(self, sound, predicted, true, match):
    distance = (predicted - true).abs().sum(dim=-1)
    weight = match.pair_mask.float() / match.pair_mask.sum().clamp(min=1)
    return (distance[:, None] @ weight[:, :, None]).float().sum()


def relabels_in_place(self, sound, anchors, logits, boxes, match, truth):
    losses = sound(anchors, logits, boxes, match, truth)
    match.labels.clamp_(min=0)
    return losses


class TestLoss(SlotTests):
    slot = "loss"
    sound = [Sound]
    broken = {
        "is_a_loss": {"it is a NoLoss; wanted a DetectionLoss": NoLoss},
        "losses_are_named_scalars": {
            "it returned Tensor": calls(lambda self, sound, *x: sum(sound(*x).values())),
            "loss_cls is torch.float32 of shape [3]": classification(
                lambda self, sound, x, *rest: sound(x, *rest).expand(len(x))
            ),
            "loss_box_reg is a float with": box(lambda self, sound, *x: float(sound(*x))),
            "is torch.float64 of shape []": box(lambda self, sound, *x: sound(*x).double()),
            "with no object in the batch it failed": needs_a_pair,
        },
        "losses_are_finite_and_not_negative": {
            "loss_box_reg has 1 values that are infinite or NaN with no object in the batch": box(
                lambda self, sound, p, t, m: (p - t).abs().sum(-1)[m.pair_mask].mean()
            ),
            "in the batch it failed: Run": needs_a_pair,
            "of huge size": box(lambda self, sound, p, t, m: sound(p.square() ** 4, t, m)),
            "wanted 0 or more": box(lambda self, sound, *x: sound(*x) - 1000),
        },
        "gradients_are_finite": {
            "with predictions of no size": box(roots_the_area),
            "with the right answer as prediction": box(
                lambda self, sound, p, t, m: mean((p - t).square().sum(dim=-1).sqrt(), m)
            ),
        },
        "logits_and_boxes_are_always_in_the_graph": {
            "the boxes get no gradient with no object in the batch": box(
                lambda self, sound, p, t, m: (
                    sound(p, t, m) if m.pair_mask.any() else torch.zeros(())
                )
            )
        },
        "prefers_the_right_answer": {
            "right logits cost": classification(
                lambda self, sound, x, targets, labels: sound(x, 1 - targets, labels)
            ),
            "right boxes cost": box(lambda self, sound, *x: (-sound(*x) / 1000).exp()),
        },
        "ignored_anchors_have_no_say_in_classification": {
            "ignored anchors get a gradient for their logits with an ordinary batch; wanted "
            "none": classification(
                lambda self, sound, x, t, labels: sound(x, t, labels.clamp(min=0))
            )
        },
        "only_pairs_that_count_train_boxes": {
            "or in masked pairs only, get": box(forgets_the_mask)
        },
        "padding_changes_nothing": {
            "changes the result: loss_box_reg": box(
                lambda self, sound, p, t, m: ((p - t).abs().sum(-1) * m.pair_mask).mean()
            )
        },
        "loss_is_deterministic": {
            "two new parts differ on the same input": classification(samples_negatives)
        },
        "loss_is_the_same_under_autocast": {
            "changes under autocast: loss_box": box(sums_by_matmul)
        },
        "inputs_are_left_alone": {"match.labels was changed in place": calls(relabels_in_place)},
        "never_waits_for_the_device": {
            "it reads a value on the host": box(
                lambda self, sound, p, t, m: sound(p, t, m) / max(1, int(m.pair_mask.sum()))
            ),
            "or mixes devices": classification(lambda *_: torch.zeros((), requires_grad=True)),
            "loss is on cpu; wanted the": calls(
                lambda *_: {"loss": torch.zeros((), requires_grad=True)}
            ),
        },
    }
