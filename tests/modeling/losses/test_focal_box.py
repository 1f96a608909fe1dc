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

from tests.waiting import spawn
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import GroundTruth, MatchResult, build_loss
from yolof_d2.modeling.losses import FocalBoxLoss
from yolof_d2.modeling.matcher import UniformMatcher
from yolof_d2.modeling.matcher.build import IGNORED

NUM_CLASSES = 3


class Batch(NamedTuple):
    """What a loss is called with."""

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


# The oracle: plain Python in float64, one anchor, one class, one pair at a time.


def focal_by_loop(logit: float, is_class: bool, alpha: float, gamma: float) -> float:
    signed = logit if is_class else -logit  # sigmoid(signed) is the score of the truth
    log_p = -math.log1p(math.exp(-signed)) if signed > 0 else signed - math.log1p(math.exp(signed))
    weight = alpha if is_class else 1 - alpha
    return -weight * (1 / (1 + math.exp(signed))) ** gamma * log_p


def box_loss_by_loop(kind: str, anchor: list[float], a: list[float], b: list[float]) -> float:
    (width_a, height_a), (width_b, height_b), anchor_size = (
        (box[2] - box[0], box[3] - box[1]) for box in (a, b, anchor)
    )
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    if kind == "l1":
        shift = sum(abs(step) / size for step, size in zip(offset, anchor_size, strict=True))
        return shift + abs(math.log(width_a / width_b)) + abs(math.log(height_a / height_b))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = width_a * height_a + width_b * height_b - width * height
    loss = 1 - width * height / union
    hull_width, hull_height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if kind == "giou":
        hull = hull_width * hull_height
        return loss + (hull - union) / hull
    distance = (offset[0] ** 2 + offset[1] ** 2) / (hull_width**2 + hull_height**2)
    aspect = (math.atan(width_a / height_a) - math.atan(width_b / height_b)) ** 2 * 4 / math.pi**2
    aspect_loss = aspect**2 / (loss + aspect) if aspect else 0
    return {"iou": loss, "diou": loss + distance, "ciou": loss + distance + aspect_loss}[kind]


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
                loss_box += box_loss_by_loop(kind, *(box.tolist() for box in triple))
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


BOX_LOSSES = ["giou", "iou", "diou", "ciou", "l1"]
every_box_loss = pytest.mark.parametrize("kind", BOX_LOSSES)


@settings(deadline=None)
@given(
    batches(),
    st.sampled_from([0.25, 0.6]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(BOX_LOSSES),
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


GT = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
PREDICTED = torch.tensor([[[0.0, 0.0, 10.0, 8.0], [5.0, 5.0, 20.0, 20.0]]])


def test_ignored_anchors_have_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, NUM_CLASSES, requires_grad=True)
    batch = make_batch(logits, PREDICTED, [[IGNORED, 1]], GT, [[(0, 0, False)]])
    loss = FocalBoxLoss()(*batch)["loss_cls"]
    loss.backward()
    assert not logits.grad[0, 0].any()
    assert logits.grad[0, 1].all()
    alone = make_batch(logits[:, 1:], PREDICTED[:, 1:], [[1]], GT, [[(0, 0, False)]])
    # Not equal to the bit: the zeros of the ignored anchor change the order of the sum.
    torch.testing.assert_close(loss, FocalBoxLoss()(*alone)["loss_cls"])


def test_a_pair_that_is_named_twice_counts_twice_but_its_anchor_is_one_positive():
    logits = torch.zeros(1, 2, NUM_CLASSES)
    once = FocalBoxLoss()(*make_batch(logits, PREDICTED, [[1, 3]], GT, [[(0, 0, True)]]))
    twice = FocalBoxLoss()(*make_batch(logits, PREDICTED, [[1, 3]], GT, [[(0, 0, True)] * 2]))
    assert once["loss_box_reg"] == pytest.approx(0.2)
    assert twice["loss_box_reg"] == 2 * once["loss_box_reg"]
    assert twice["loss_cls"] == once["loss_cls"]


def match_uniformly(logits: Tensor, boxes: Tensor, num_gt: list[int]) -> Batch:
    """The batch as the model makes it; each image has its first anchors for ground truth."""
    anchors = torch.tensor([[8.0 * i, 0.0, 8.0 * i + 16, 16.0] for i in range(boxes.shape[1])])
    instances = [
        Instances((64, 64), gt_boxes=Boxes(anchors[:num]), gt_classes=torch.arange(num))
        for num in num_gt
    ]
    ground_truth = GroundTruth.from_instances(instances, logits.device)
    matcher = UniformMatcher(num_classes=NUM_CLASSES, topk=1)
    match = matcher(anchors.to(boxes.device), logits, boxes, ground_truth)
    return Batch(anchors.to(boxes.device), logits, boxes, match, ground_truth)


@every_box_loss
@pytest.mark.parametrize("num_gt", [[0, 0], [0, 2], [3, 1]])
def test_gradients_reach_every_input_with_and_without_boxes(num_gt, kind):
    logits = torch.randn(2, 4, NUM_CLASSES, requires_grad=True)
    boxes = torch.tensor([0.0, 0.0, 9.0, 9.0]).repeat(2, 4, 1).requires_grad_()
    losses = FocalBoxLoss(bbox_reg_loss_type=kind)(*match_uniformly(logits, boxes, num_gt))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert logits.grad.isfinite().all() and logits.grad.any()
    assert boxes.grad.isfinite().all()
    assert bool(boxes.grad.any()) == any(num_gt)


def test_without_positives_the_normaliser_is_one():
    logits = torch.zeros(1, 2, NUM_CLASSES)
    losses = FocalBoxLoss()(*match_uniformly(logits, PREDICTED, [0]))
    assert losses["loss_cls"] == pytest.approx(2 * NUM_CLASSES * 0.75 * 0.25 * math.log(2))
    assert losses["loss_box_reg"] == 0


@every_box_loss
@pytest.mark.parametrize("size", [0.0, 1e-3, 1e6])
def test_tiny_and_huge_predicted_boxes_have_finite_losses_and_gradients(size, kind):
    boxes = torch.tensor([5.0, 5.0, 5.0 + size, 5.0 + size]).repeat(1, 4, 1).requires_grad_()
    batch = match_uniformly(torch.zeros(1, 4, NUM_CLASSES), boxes, [2])
    losses = FocalBoxLoss(bbox_reg_loss_type=kind)(*batch)
    losses["loss_box_reg"].backward()
    assert losses["loss_box_reg"].isfinite()
    assert boxes.grad.isfinite().all()


@every_box_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype, kind):
    batch = match_uniformly(torch.randn(2, 4, NUM_CLASSES), torch.rand(2, 4, 4).cumsum(2), [2, 1])
    loss = FocalBoxLoss(bbox_reg_loss_type=kind)
    expected = loss(*batch)
    with torch.autocast("cpu", dtype=dtype):
        found = loss(*batch)
    assert found == expected
    assert all(value.dtype == torch.float32 for value in found.values())


@every_box_loss
def test_the_loss_never_waits_for_the_device(kind):
    # See the test of the same name of the matcher: tensors without values.
    logits = torch.randn(2, 4, NUM_CLASSES, device="meta", requires_grad=True)
    boxes = torch.zeros(2, 4, 4, device="meta", requires_grad=True)
    losses = FocalBoxLoss(bbox_reg_loss_type=kind)(*match_uniformly(logits, boxes, [2, 0]))
    sum(losses.values()).backward()
    assert logits.grad is not None and boxes.grad is not None


def test_each_loss_has_its_weight():
    batch = make_batch(torch.zeros(1, 2, NUM_CLASSES), PREDICTED, [[1, 3]], GT, [[(0, 0, True)]])
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
            "BBOX_REG_LOSS_TYPE is 'smooth_l1'; expected one of "
            "'giou', 'iou', 'diou', 'ciou', 'l1'",
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
    results = []
    for num_gt in NUM_GT_OF_RANKS:
        logits = torch.zeros(1, 4, NUM_CLASSES, requires_grad=True)
        boxes = torch.tensor([0.0, 0.0, 9.0, 9.0]).repeat(1, 4, 1)
        batch = match_uniformly(logits, boxes, [num_gt[rank]])
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
