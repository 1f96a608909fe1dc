from __future__ import annotations

import math
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.modeling.boxes import BOX_LOSSES
from tests.waiting import spawn
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import GroundTruth, MatchResult, build_loss
from yolof_d2.modeling.losses import FocalBoxLoss
from yolof_d2.modeling.matcher import UniformMatcher
from yolof_d2.modeling.matcher.build import IGNORED

NUM_CLASSES = 3


class Batch(NamedTuple):
    """The arguments of a loss."""

    anchors: Tensor
    logits: Tensor
    boxes: Tensor
    match: MatchResult
    ground_truth: GroundTruth


def make_batch(
    logits: Tensor,
    boxes: Tensor,
    labels: list[list[int]],
    gt_boxes: Tensor,
    pairs: list[list[tuple[int, int, bool]]],
    anchors: Tensor | None = None,
) -> Batch:
    anchors = boxes[0].detach() if anchors is None else anchors
    columns = torch.tensor(pairs).view(len(pairs), -1, 3).unbind(-1)
    match = MatchResult(torch.tensor(labels), columns[0], columns[1], columns[2].bool())
    classes = torch.zeros(gt_boxes.shape[:2], dtype=torch.int64)
    return Batch(anchors, logits, boxes, match, GroundTruth(gt_boxes, classes, classes == 0))


# The oracle: plain Python in float64, one anchor, one class, one pair at a time; losses of a pair
# of boxes by other libraries.


def focal_by_loop(logit: float, is_class: bool, alpha: float, gamma: float) -> float:
    signed = logit if is_class else -logit  # sigmoid(signed) is the score of the truth
    log_p = -math.log1p(math.exp(-signed)) if signed > 0 else signed - math.log1p(math.exp(signed))
    weight = alpha if is_class else 1 - alpha
    return -weight * (1 / (1 + math.exp(signed))) ** gamma * log_p


def losses_by_loop(
    batch: Batch, alpha: float = 0.25, gamma: float = 2.0, kind: str = "giou"
) -> dict[str, float]:
    loss_cls, loss_box, num_positive = 0.0, 0.0, 0
    for n, labels in enumerate(batch.match.labels.tolist()):
        for r, label in enumerate(labels):
            num_positive += 0 <= label < NUM_CLASSES
            if label != IGNORED:
                for k, logit in enumerate(batch.logits[n, r].tolist()):
                    loss_cls += focal_by_loop(logit, k == label, alpha, gamma)
        match = batch.match
        for anchor, gt, counts in zip(
            match.pair_anchor_idx[n], match.pair_gt_idx[n], match.pair_mask[n], strict=True
        ):
            if counts:
                triple = (
                    batch.anchors[anchor],
                    batch.boxes[n, anchor],
                    batch.ground_truth.boxes[n, gt],
                )
                loss_box += BOX_LOSSES[kind](*(box[None].double() for box in triple)).item()
    normalizer = max(1, num_positive)
    return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box / normalizer}


def boxes(*shape: int) -> st.SearchStrategy[Tensor]:
    def to_xyxy(array) -> Tensor:
        corner, size = torch.from_numpy(array).float().split(2, dim=-1)
        return torch.cat((corner, corner + size + 1), dim=-1)

    return hnp.arrays("int64", (*shape, 4), elements=st.integers(0, 20)).map(to_xyxy)


@st.composite
def batches(draw) -> Batch:
    n, r, m, p = (draw(st.integers(1, most)) for most in (2, 4, 3, 6))
    logit = st.floats(-100, 100, width=32)
    logits = torch.from_numpy(draw(hnp.arrays("float32", (n, r, NUM_CLASSES), elements=logit)))
    label = st.integers(IGNORED, NUM_CLASSES)
    labels = draw(hnp.arrays("int64", (n, r), elements=label)).tolist()
    pair = st.tuples(st.integers(0, r - 1), st.integers(0, m - 1), st.booleans())
    image_pairs = st.lists(pair, min_size=p, max_size=p)  # duplicates are common
    pairs = draw(st.lists(image_pairs, min_size=n, max_size=n))
    return make_batch(logits, draw(boxes(n, r)), labels, draw(boxes(n, m)), pairs, draw(boxes(r)))


@settings(deadline=None)
@given(
    batches(),
    st.sampled_from([0.25, 0.6]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(list(BOX_LOSSES)),
)
def test_agrees_with_a_loop_in_float64_and_has_finite_gradients(batch, alpha, gamma, kind):
    batch.logits.requires_grad_()
    batch.boxes.requires_grad_()
    loss = FocalBoxLoss(focal_alpha=alpha, focal_gamma=gamma, bbox_reg_loss_type=kind)
    losses = loss(*batch)
    expected = losses_by_loop(batch, alpha, gamma, kind)
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    sum(losses.values()).backward()
    assert batch.logits.grad.isfinite().all() and batch.boxes.grad.isfinite().all()


def test_each_loss_has_its_weight():
    predicted = torch.tensor([[[0.0, 0.0, 10.0, 8.0], [5.0, 5.0, 20.0, 20.0]]])
    truth = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    logits = torch.zeros(1, 2, NUM_CLASSES)
    batch = make_batch(logits, predicted, [[1, 3]], truth, [[(0, 0, True)]])
    plain = FocalBoxLoss()(*batch)
    weighted = FocalBoxLoss(cls_loss_weight=3.0, bbox_reg_loss_weight=0.5)(*batch)
    assert weighted["loss_cls"] == pytest.approx(3 * plain["loss_cls"])
    assert weighted["loss_box_reg"] == pytest.approx(0.5 * plain["loss_box_reg"])
    assert FocalBoxLoss(bbox_reg_loss_weight=0)(*batch)["loss_box_reg"] == 0


def test_each_key_arrives_from_the_config(cfg):
    values = {
        "FOCAL_ALPHA": 0.5,
        "FOCAL_GAMMA": 1.0,
        "BBOX_REG_LOSS_TYPE": "ciou",
        "CLS_LOSS_WEIGHT": 2.0,
        "BBOX_REG_LOSS_WEIGHT": 3.0,
    }
    cfg.MODEL.YOLOF.LOSS.FOCAL_BOX = CfgNode(values)  # no key more
    assert vars(build_loss(cfg)) == {key.lower(): value for key, value in values.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bbox_reg_loss_type": "smooth_l1"},
            "BBOX_REG_LOSS_TYPE must be one of 'giou', 'iou', 'diou', 'ciou', 'l1', "
            "got 'smooth_l1'",
        ),
        ({"cls_loss_weight": -1.0}, "CLS_LOSS_WEIGHT must be 0 or more, got -1.0"),
        ({"bbox_reg_loss_weight": -0.5}, "BBOX_REG_LOSS_WEIGHT must be 0 or more, got -0.5"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.LOSS.FOCAL_BOX.{message}"):
        FocalBoxLoss(**options)


NUM_GT_OF_RANKS = [(3, 0), (0, 0), (0, 2)]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    anchors = torch.tensor([[8.0 * i, 0.0, 8.0 * i + 16, 16.0] for i in range(4)])
    matcher = UniformMatcher(num_classes=NUM_CLASSES, topk=1)
    results = []
    for num_gt in NUM_GT_OF_RANKS:
        num = num_gt[rank]  # the first anchors are the ground truth
        truth = Instances((64, 64), gt_boxes=Boxes(anchors[:num]), gt_classes=torch.arange(num))
        ground_truth = GroundTruth.from_instances([truth], anchors.device)
        logits = torch.zeros(1, 4, NUM_CLASSES, requires_grad=True)
        boxes = torch.tensor([0.0, 0.0, 9.0, 9.0]).repeat(1, 4, 1)
        match = matcher(anchors, logits, boxes, ground_truth)
        batch = Batch(anchors, logits, boxes, match, ground_truth)
        losses = FocalBoxLoss()(*batch)
        sum(losses.values()).backward()
        labels = batch.match.labels
        positives = int(((labels != IGNORED) & (labels != NUM_CLASSES)).sum())
        sums = {name: value * max(1, positives) for name, value in losses_by_loop(batch).items()}
        losses = {name: loss.item() for name, loss in losses.items()}
        assert logits.grad.isfinite().all()
        results.append((positives, sums, losses))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_share_one_normaliser_even_when_one_has_no_boxes(tmp_path):
    spawn(run_rank, str(tmp_path))
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for num_gt, *results in zip(NUM_GT_OF_RANKS, *by_rank, strict=True):
        normalizer = max(1, sum(positives for positives, _, _ in results) / 2)
        for num, (positives, sums, losses) in zip(num_gt, results, strict=True):
            assert (positives > 0) == (num > 0)
            expected = {name: value / normalizer for name, value in sums.items()}
            assert losses == pytest.approx(expected, rel=1e-5)
