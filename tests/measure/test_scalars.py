from __future__ import annotations

import math
import time

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from tests.small import load, read_lines, write_config
from yolof_d2.config import build_cfg
from yolof_d2.engine import Trainer
from yolof_d2.measure import scalars
from yolof_d2.measure.scalars import (
    PERIOD,
    TrainingMeasurements,
    is_due,
    measure_evaluation,
)
from yolof_d2.modeling.families import family_of_model
from yolof_d2.modeling.matcher import match_statistics
from yolof_d2.modeling.matcher.statistics import COUNTS


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return write_config(tmp_path_factory.mktemp("small"))


@pytest.fixture
def make_cfg(small, tmp_path):
    def make(*overrides: object, config: str = "") -> CfgNode:
        words = ["OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", 0, "MODEL.DEVICE", "cpu", *overrides]
        return load(config or small, *words)

    return make


def test_a_run_writes_every_measurement_of_the_table(make_cfg, tmp_path):
    iterations = PERIOD + 2
    cfg = make_cfg("SOLVER.MAX_ITER", iterations, "TEST.EVAL_PERIOD", 11, "SOLVER.STEPS", (15,))
    cfg.SOLVER.CHECKPOINT_PERIOD = 11
    Trainer(cfg).train()
    records = read_lines(tmp_path / "metrics.json")
    assert [r["iteration"] for r in records] == [10, PERIOD - 1, iterations - 1, iterations]
    in_training = {
        "total_loss", "loss_cls", "loss_box_reg", "lr", "time", "data_time",
        "train/images_per_second", "train/data_time_share", "train/grad_norm",
        "train/memory_process_mib", "per_rank/train_memory_process_mib_rank0",
        "match/positives_per_gt", "match/ignored_anchor_share", "match/positive_anchor_share",
        "match/contested_anchor_share",
    }  # fmt: skip
    assert in_training <= records[1].keys() & records[2].keys()
    in_evaluation = {"eval/seconds", "eval/images_per_second", "eval/memory_process_mib"}
    boxes = {f"bbox/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    assert in_evaluation | boxes | {"checkpoint/seconds"} <= records[0].keys()
    assert in_evaluation | boxes <= records[3].keys()
    # The table in the documents lists them.
    table = (tmp_path.cwd() / "docs" / "measurements.md").read_text()
    for name in set().union(*records) - {"iteration"}:
        stem = name.split("-")[0].removesuffix("_rank0")
        assert f"`{stem}" in table, name
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == f"{iterations:07d}.png"


def test_measuring_changes_nothing_about_training(make_cfg, monkeypatch):
    def weights() -> dict[str, torch.Tensor]:
        seed_all_rng(0)
        trainer = Trainer(make_cfg("SOLVER.MAX_ITER", 3, "SEED", 1, "TEST.PICTURES.NUM_IMAGES", 0))
        trainer.test = lambda *_: {}
        trainer.train()
        return trainer.model.state_dict()

    torch.use_deterministic_algorithms(True)
    try:
        monkeypatch.setattr("yolof_d2.measure.scalars.PERIOD", 1)
        measured = weights()
        monkeypatch.setattr("yolof_d2.measure.scalars.is_due", lambda *_: False)
        plain = weights()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(measured[name], value) for name, value in plain.items())


# Gradients


@pytest.mark.parametrize("precision", ["none", "fp16", "bf16"])
def test_the_gradient_norm_is_that_before_clipping_and_scaling(make_cfg, precision):
    cfg = make_cfg(
        *("SOLVER.MAX_ITER", 1, "SOLVER.CLIP_GRADIENTS.ENABLED", True),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3),
        *("SOLVER.AMP.ENABLED", precision != "none"),
        *("SOLVER.AMP.PRECISION", precision if precision != "none" else "bf16"),
    )
    trainer = Trainer(cfg)
    trainer.test = lambda *_: {}
    if precision == "fp16":  # a scale that this batch does not overflow
        trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    found = []

    class Look(HookBase):
        def after_backward(self):
            scale = self.trainer.grad_scaler.get_scale()
            gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
            found.append(
                math.sqrt(sum((g.double() / scale).square().sum().item() for g in gradients))
            )

    trainer._trainer.register_hooks([Look()])
    trainer.train()
    logged = trainer.storage.latest()["train/grad_norm"][0]
    assert logged == pytest.approx(found[0], rel=1e-4) and logged > 1e-2


# Speed


@pytest.mark.parametrize(("start", "expected"), [(0, 8.0), (PERIOD - 5, 40.0)])
def test_speed_leaves_out_the_first_iterations_of_a_start(start, expected):
    # 1 s until the tenth iteration after the beginning, 0.2 s from there; only what comes ten
    # iterations after a start counts.
    class Step(TrainerBase):
        grad_norm = stream_word = math.nan

        def run_step(self):
            slow = self.iter < PERIOD
            seconds = 1.0 if slow else 0.2
            self.storage.put_scalars(time=seconds, data_time=seconds / 4)

    run = Step()
    run.register_hooks([TrainingMeasurements(nn.Identity(), batch_size=8)])
    run.train(start, 2 * PERIOD)
    speeds = run.storage.history("train/images_per_second").values()
    assert speeds[0][0] == expected
    assert run.storage.history("train/data_time_share").latest() == pytest.approx(0.25)


def test_what_is_due_is_every_20th_iteration_and_the_last():
    assert [i for i in range(45) if is_due(i, 45)] == [19, 39, 44]


# Matches


def instances(boxes: list[list[float]], classes: list[int]) -> Instances:
    truth = {"gt_boxes": Boxes(torch.tensor(boxes).reshape(-1, 4))}
    return Instances((64, 64), **truth, gt_classes=torch.tensor(classes, dtype=torch.int64))


@pytest.fixture
def batch() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(3, 64, 64, generator=generator) * 255, "instances": truth}
        for truth in (
            instances([[2.0, 2, 14, 14], [10, 10, 58, 58], [30, 30, 45, 45]], [0, 1, 2]),
            instances([], []),
        )
    ]


def test_yolofs_matches_are_those_that_its_loss_got(make_cfg, batch):
    model = Trainer.build_model(make_cfg()).train()
    matcher, seen = model.matcher, []
    loss = model.loss

    def look(anchors, logits, boxes, match, ground_truth):
        seen.append((match, ground_truth))
        return loss(anchors, logits, boxes, match, ground_truth)

    model.loss = look
    with family_of_model(model).counted_matches(model) as counted:
        model(batch)
    assert model.matcher is matcher
    match, ground_truth = seen[0]
    counts = dict(zip(COUNTS, counted[0].tolist(), strict=True))
    expected = match_statistics(match, ground_truth, model.decoder.num_classes)
    assert counts["gt"] == 3 and counts["gt_small"] == 2 and counts["gt_medium"] == 1
    assert counts["positives"] / 3 == pytest.approx(expected["positives_per_gt"].item())
    assert counts["positives_medium"] == pytest.approx(expected["positives_per_gt_medium"].item())


@pytest.mark.parametrize(
    "config", ["quick/synthetic_retinanet.yaml", "baselines/fcos_R_50_FPN_1x.yaml"]
)
def test_positives_of_other_detectors_are_counted_by_object_size(batch, config):
    narrow = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    cfg = build_cfg(f"configs/{config}", ["MODEL.DEVICE", "cpu", *narrow])
    model = Trainer.build_model(cfg).train()
    with EventStorage(), family_of_model(model).counted_matches(model) as counted:
        model(batch)
    assert "label_anchors" not in model.__dict__
    counts = dict(zip(COUNTS, counted[0].tolist(), strict=True))

    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    features = [features[name] for name in model.head_in_features]
    anchors = model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, [image["instances"] for image in batch])
    positives = {"small": 0, "medium": 0, "large": 0}
    for label, (x0, y0, x1, y1) in zip(torch.cat(labels), torch.cat(boxes).tolist(), strict=True):
        if 0 <= label < 3:
            area = (x1 - x0) * (y1 - y0)
            positives["small" if area < 1024 else "medium" if area < 9216 else "large"] += 1
    assert positives["small"] and positives["medium"]
    assert {size: counts[f"positives_{size}"] for size in positives} == positives
    assert counts["positives"] == counts["positive_anchors"] == sum(positives.values())
    assert counts["ignored_anchors"] == (torch.cat(labels) == -1).sum()
    assert counts["anchors"] == sum(map(len, labels)) and counts["gt"] == 3


# Evaluation


class SlowModel(nn.Module):
    """Takes its time, and the first batches take more, on a clock of its own."""

    calls, now = 0, 0.0

    def forward(self, inputs):
        self.calls += 1
        self.now += 0.2 if self.calls <= 5 else 0.02


def test_an_evaluation_is_timed_as_a_whole_and_its_model_without_the_first_batches(monkeypatch):
    model = SlowModel()
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    with measure_evaluation(model) as measured:
        model.now += 0.3  # loading, scoring
        for _ in range(10):
            model([{}, {}])
    monkeypatch.undo()
    assert measured["seconds"] == pytest.approx(0.3 + 5 * 0.2 + 5 * 0.02)
    assert measured["images_per_second"] == pytest.approx(2 * 5 / (5 * 0.02))
    assert measured["memory_process_mib"] > 50
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_an_evaluation_without_images_has_a_speed_of_zero():
    with measure_evaluation(SlowModel()) as measured:
        pass
    assert measured["images_per_second"] == 0


def test_an_evaluation_that_fails_leaves_the_model_as_it_was():
    model = SlowModel()
    with pytest.raises(KeyError), measure_evaluation(model):
        raise KeyError
    assert not model._forward_hooks


# All ranks


def test_what_is_measured_is_of_all_ranks(monkeypatch):
    def counts(**values: float) -> list[float]:
        return [values.get(name, 0.0) for name in COUNTS]

    def gather(own):
        memory, _ = own
        more = {name: value + 1000 for name, value in memory.items()}
        matches = [counts(gt=1, positives=4), counts(gt=3, positives=4), None]
        return list(zip((memory, more, memory), matches, strict=True))

    class Step(TrainerBase):
        grad_norm = stream_word = math.nan

        def run_step(self):
            self.storage.put_scalars(time=1.0, data_time=0.5)

    monkeypatch.setattr(scalars.comm, "gather", gather)
    run = Step()
    run.register_hooks([TrainingMeasurements(nn.Identity(), batch_size=8)])
    run.train(0, PERIOD)
    found = {name: value for name, (value, _) in run.storage.latest().items()}
    assert found["match/positives_per_gt"] == 2
    each = [found[f"per_rank/train_memory_process_mib_rank{rank}"] for rank in range(3)]
    assert each == [each[0], each[0] + 1000, each[0]]
    assert found["train/memory_process_mib"] == each[1]


def test_an_evaluation_is_that_of_all_ranks(monkeypatch):
    def gather(own):
        speed, memory = own
        return [own, (speed + 50, {name: value + 1000 for name, value in memory.items()})]

    monkeypatch.setattr(scalars.comm, "gather", gather)
    with measure_evaluation(nn.Identity()) as measured:
        pass
    assert measured["images_per_second"] == 50
    assert measured["memory_process_mib"] > 1000
