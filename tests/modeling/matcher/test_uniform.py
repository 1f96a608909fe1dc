from __future__ import annotations

from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolof_d2.errors import ConfigError
from yolof_d2.modeling import GroundTruth, MatchResult
from yolof_d2.modeling.matcher import UniformMatcher
from yolof_d2.modeling.matcher.build import IGNORED

NUM_CLASSES = 3


class Image(NamedTuple):
    pred_boxes: Tensor  # (R, 4)
    gt_boxes: Tensor  # (M, 4)
    gt_classes: Tensor  # (M,)


def pad(images: list[Image], device: str = "cpu") -> GroundTruth:
    instances = [
        Instances((64, 64), gt_boxes=Boxes(image.gt_boxes), gt_classes=image.gt_classes)
        for image in images
    ]
    return GroundTruth.from_instances(instances, torch.device(device))


def run(anchors: Tensor, images: list[Image], matcher: UniformMatcher) -> MatchResult:
    pred_boxes = torch.stack([image.pred_boxes for image in images])
    logits = torch.zeros(*pred_boxes.shape[:2], NUM_CLASSES)
    return matcher(anchors, logits, pred_boxes, pad(images))


def make_matcher(**options) -> UniformMatcher:
    return UniformMatcher(num_classes=NUM_CLASSES, **options)


# The oracle: plain Python, one image, one box, one anchor at a time.


def l1_distance(a: list[float], b: list[float]) -> float:
    centers = abs(a[0] + a[2] - b[0] - b[2]) / 2 + abs(a[1] + a[3] - b[1] - b[3]) / 2
    return centers + abs(a[2] - a[0] - b[2] + b[0]) + abs(a[3] - a[1] - b[3] + b[1])


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def real_pairs(match: MatchResult, n: int, num_gt: int) -> list[tuple[int, int, bool]]:
    """Anchor, ground truth and mask of the pairs of image ``n``, without those of padding."""
    pairs = (match.pair_anchor_idx, match.pair_gt_idx, match.pair_mask)
    return [p for p in zip(*(column[n].tolist() for column in pairs), strict=True) if p[1] < num_gt]


def assert_agrees_with_oracle(
    anchors: Tensor, image: Image, match: MatchResult, n: int, matcher: UniformMatcher
) -> None:
    anchor_list, preds, gts = (b.tolist() for b in (anchors, image.pred_boxes, image.gt_boxes))
    pairs = real_pairs(match, n, len(gts))
    k = min(matcher.topk, len(anchor_list))
    assert len(pairs) == k * 2 * len(gts)

    # Which pairs, in the documented order: rank, list, ground truth. Equally near boxes may be
    # taken either way: their costs are compared, not their indices.
    ranked = {
        (which, m): sorted(l1_distance(box, gt) for box in boxes)
        for which, boxes in enumerate((preds, anchor_list))
        for m, gt in enumerate(gts)
    }
    taken: dict[tuple[int, int], list[int]] = {key: [] for key in ranked}
    order = [(rank, which, m) for rank in range(k) for which in (0, 1) for m in range(len(gts))]
    for (rank, which, m), (anchor, gt, counts) in zip(order, pairs, strict=True):
        assert gt == m
        box = (preds, anchor_list)[which][anchor]
        assert l1_distance(box, gts[m]) == ranked[which, m][rank]
        assert counts == (iou(anchor_list[anchor], gts[m]) >= matcher.pos_ignore_iou)
        taken[which, m].append(anchor)
    assert all(len(set(indices)) == k for indices in taken.values())

    labels = [matcher.num_classes] * len(anchor_list)
    for r, box in enumerate(preds):
        if any(iou(box, gt) > matcher.neg_ignore_iou for gt in gts):
            labels[r] = IGNORED
    for anchor, gt, counts in pairs:
        labels[anchor] = int(image.gt_classes[gt]) if counts else IGNORED
    assert match.labels[n].tolist() == labels

    # Padding never counts.
    is_padding = match.pair_gt_idx[n] >= len(gts)
    assert not match.pair_mask[n][is_padding].any()


def boxes(num: int, smallest: int) -> st.SearchStrategy[Tensor]:
    """Whole coordinates, so that float32 is exact, and small, so that ties are common."""
    elements = st.integers(0, 12)

    def to_xyxy(array) -> Tensor:
        corner, size = torch.from_numpy(array).float().split(2, dim=1)
        return torch.cat((corner, corner + size + smallest), dim=1)

    return hnp.arrays("int64", (num, 4), elements=elements).map(to_xyxy)


@st.composite
def batches(draw) -> tuple[Tensor, list[Image], UniformMatcher]:
    num_anchors = draw(st.integers(1, 10))
    images = []
    for num_gt in draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)):
        classes = draw(hnp.arrays("int64", (num_gt,), elements=st.integers(0, NUM_CLASSES - 1)))
        gt_boxes = draw(boxes(num_gt, smallest=1))
        images.append(
            Image(draw(boxes(num_anchors, smallest=0)), gt_boxes, torch.from_numpy(classes))
        )
    matcher = make_matcher(
        topk=draw(st.integers(1, 6)),
        pos_ignore_iou=draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        neg_ignore_iou=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    )
    return draw(boxes(num_anchors, smallest=1)), images, matcher


@settings(deadline=None, max_examples=200)
@given(batches())
def test_agrees_with_a_loop_in_python(batch):
    anchors, images, matcher = batch
    match = run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


@settings(deadline=None, max_examples=50)
@given(batches())
def test_an_image_is_matched_as_if_it_were_alone(batch):
    anchors, images, matcher = batch
    together = run(anchors, images, matcher)
    for n, image in enumerate(images):
        alone = run(anchors, [image], matcher)
        num_gt = len(image.gt_boxes)
        assert torch.equal(together.labels[n], alone.labels[0])
        assert real_pairs(together, n, num_gt) == real_pairs(alone, 0, num_gt)


def random_image(num_anchors: int, num_gt: int, seed: int = 0) -> Image:
    """Multiples of 1/8 pixel: float32 and the oracle's float64 agree on every cost."""
    generator = torch.Generator().manual_seed(seed)

    def random_boxes(num: int) -> Tensor:
        corner, size = (torch.randint(0, 800, (num, 2), generator=generator) / 8 for _ in range(2))
        return torch.cat((corner, corner + size + 1), dim=1)

    classes = torch.randint(0, NUM_CLASSES, (num_gt,), generator=generator)
    return Image(random_boxes(num_anchors), random_boxes(num_gt), classes)


def grid_anchors(height: int, width: int, sizes: tuple[float, ...] = (16, 32, 64)) -> Tensor:
    y, x, half = torch.meshgrid(
        torch.arange(height) * 32.0, torch.arange(width) * 32.0, torch.tensor(sizes) / 2
    )
    return torch.stack((x - half, y - half, x + half, y + half), dim=-1).view(-1, 4)


@pytest.mark.parametrize("num_gt", [(0,), (0, 0), (0, 3), (3, 0, 1)])
def test_images_without_boxes_have_background_only(num_gt):
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=n) for n, num in enumerate(num_gt)]
    match = run(anchors, images, make_matcher(pos_ignore_iou=0.0))
    for n, num in enumerate(num_gt):
        assert match.pair_mask[n].any() == (num > 0)
        assert (match.labels[n] == NUM_CLASSES).all() == (num == 0)


def test_topk_above_the_number_of_anchors_takes_all_of_them():
    anchors = grid_anchors(1, 1)
    match = run(anchors, [random_image(3, 2)], make_matcher(topk=8, pos_ignore_iou=0.0))
    assert match.pair_anchor_idx.shape == (1, 3 * 2 * 2)
    assert match.pair_mask.all()
    for m in (0, 1):
        anchor_idx = match.pair_anchor_idx[match.pair_gt_idx == m]
        assert sorted(anchor_idx.tolist()) == [0, 0, 1, 1, 2, 2]


def test_500_boxes_on_one_image():
    anchors = grid_anchors(4, 5)
    images = [random_image(len(anchors), 500), random_image(len(anchors), 1)]
    matcher = make_matcher()
    match = run(anchors, images, matcher)
    for n, image in enumerate(images):
        assert_agrees_with_oracle(anchors, image, match, n, matcher)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("classes", [[1, 2], [2, 1], [0, 2, 1]])
def test_of_identical_boxes_the_last_gives_the_label_and_all_count_in_the_box_loss(
    deterministic, classes
):
    anchors = grid_anchors(2, 2)
    gt_boxes = anchors[4].repeat(len(classes), 1)
    image = Image(anchors.clone(), gt_boxes, torch.tensor(classes))
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        first, second = (run(anchors, [image], make_matcher()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert first.labels[0, 4] == classes[-1]
    positive = (first.labels != IGNORED) & (first.labels != NUM_CLASSES)
    assert (first.labels[positive] == classes[-1]).all()
    for m in range(len(classes)):
        anchor_idx = first.pair_anchor_idx[(first.pair_gt_idx == m) & first.pair_mask]
        assert anchor_idx.tolist().count(4) == 2  # from the predictions, and from the anchors
    for a, b in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(a, b)


def test_a_1_pixel_box_is_paired_but_its_far_too_large_anchors_are_ignored():
    anchors = grid_anchors(2, 2)
    image = Image(anchors.clone(), torch.tensor([[31.0, 31.0, 32.0, 32.0]]), torch.tensor([1]))
    matcher = make_matcher()
    match = run(anchors, [image], matcher)
    assert not match.pair_mask.any()
    assert match.labels[0].tolist().count(IGNORED) == 4  # both lists name the same four
    assert_agrees_with_oracle(anchors, image, match, 0, matcher)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_predictions_that_are_not_finite_do_not_crash(value, share):
    anchors = grid_anchors(3, 3)
    image = random_image(len(anchors), 2)
    image.pred_boxes[: int(len(anchors) * share)] = value
    match = run(anchors, [image], make_matcher())
    assert match.pair_anchor_idx.min() >= 0 and match.pair_anchor_idx.max() < len(anchors)
    assert match.labels.min() >= -1 and match.labels.max() <= NUM_CLASSES


def test_result_has_the_documented_shapes_and_types():
    anchors = grid_anchors(2, 2)
    match = run(anchors, [random_image(12, 3), random_image(12, 2)], make_matcher(topk=4))
    assert match.labels.shape == (2, 12)
    pairs = (match.pair_anchor_idx, match.pair_gt_idx, match.pair_mask)
    assert {tuple(column.shape) for column in pairs} == {(2, 4 * 2 * 3)}
    dtypes = [value.dtype for value in vars(match).values()]
    assert dtypes == [torch.int64, torch.int64, torch.int64, torch.bool]


def test_costs_are_computed_per_image_and_without_a_gradient_graph(monkeypatch):
    costs = []
    cdist = torch.cdist

    def spy(*args, **options):
        costs.append(cdist(*args, **options))
        return costs[-1]

    monkeypatch.setattr(torch, "cdist", spy)
    anchors = grid_anchors(2, 2)
    images = [random_image(12, num, seed=num) for num in (5, 2, 0)]
    images = [image._replace(pred_boxes=image.pred_boxes.requires_grad_()) for image in images]
    run(anchors, images, make_matcher())
    # (N, M, R), which grows with N; across images it would be (N * R) x (the sum of M).
    assert [cost.shape for cost in costs] == [(3, 5, 12)] * 2
    assert not any(cost.requires_grad for cost in costs)


def test_matching_never_waits_for_the_device():
    # Tensors of the meta device have no values: any operation that must look at one, or whose
    # result's shape depends on one, fails; so does a copy to the host.
    anchors = grid_anchors(3, 3)
    images = [random_image(len(anchors), num, seed=num) for num in (4, 0, 2)]
    ground_truth = pad(images, device="meta")
    pred_boxes = torch.empty(3, len(anchors), 4, device="meta")
    logits = torch.empty(3, len(anchors), NUM_CLASSES, device="meta")
    match = make_matcher()(anchors.to("meta"), logits, pred_boxes, ground_truth)
    assert match.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"topk": 0}, "TOPK must be 1 or more"),
        ({"pos_ignore_iou": 1.5}, "POS_IGNORE_IOU must lie in"),
        ({"neg_ignore_iou": -0.1}, "NEG_IGNORE_IOU must lie in"),
    ],
)
def test_impossible_settings_are_refused(options, key):
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.MATCHER.UNIFORM.{key}"):
        make_matcher(**options)
