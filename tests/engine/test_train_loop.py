from __future__ import annotations

import copy
import math
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from tests.small import data_keys, load, write_data
from tests.waiting import CAP, spawn
from yolof_d2.engine import Trainer, train_loop
from yolof_d2.engine.train_loop import MixedPrecisionTrainer
from yolof_d2.errors import NonFiniteLossError, UserError

PRECISIONS = [None, torch.bfloat16, torch.float16]


class Toy(nn.Module):
    """A linear model whose loss can be made bad by the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, data):
        out = self.layer(torch.stack([image["image"] for image in data]))
        self.seen_dtype = out.dtype
        return {"loss_cls": out.float().square().mean(), "loss_box": out.float().abs().mean()}


def batch(value: float = 1.0, ids: tuple[int, ...] = (7, 8)) -> list[dict]:
    return [{"image": torch.full((3,), value), "image_id": i, "file_name": f"{i}.png"} for i in ids]


def trainer(batches, precision=None, lr=0.1) -> MixedPrecisionTrainer:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.1)
    made = MixedPrecisionTrainer(model, batches, optimizer, precision)
    made.iter = 41
    return made


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_iteration_terms_and_images(precision, bad):
    subject = trainer([batch(), batch(bad)], precision)
    with EventStorage(41):
        subject.run_step()  # gives the optimizer momentum
        before = copy.deepcopy(subject.model.state_dict())
        momentum = copy.deepcopy(subject.optimizer.state_dict()["state"])
        with pytest.raises(NonFiniteLossError) as caught:
            subject.run_step()
    said = str(caught.value)
    for part in ("iteration 41", "loss_cls", "loss_box", "7 (7.png)", "8 (8.png)", "BASE_LR"):
        assert part in said
    assert isinstance(caught.value, UserError)
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # bitwise
    now = subject.optimizer.state_dict()["state"]
    assert all(torch.equal(momentum[i]["momentum_buffer"], now[i]["momentum_buffer"]) for i in now)


class BadGradient(torch.autograd.Function):
    """Leaves a value as it is, and ruins its gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class Ruined(Toy):
    def forward(self, data):
        losses = super().forward(data)
        return {**losses, "loss_cls": BadGradient.apply(losses["loss_cls"])}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(precision, monkeypatch):
    monkeypatch.setattr(train_loop, "_SKIPPED_STEPS", 3)
    subject = trainer([batch()] * 3, precision)
    subject.model = Ruined()
    subject.optimizer = torch.optim.SGD(subject.model.parameters(), lr=0.1)
    before = copy.deepcopy(subject.model.state_dict())
    with EventStorage(41):
        if precision is torch.float16:  # which tries lower scales first
            subject.run_step()
            subject.run_step()
        with pytest.raises(NonFiniteLossError, match=r"gradient \(layer\..*\).*41.*7 \(7.png\)"):
            subject.run_step()
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_falls_and_stays_finite(precision):
    subject = trainer([batch(3.0)] * 60, precision, lr=0.005)
    with EventStorage(0) as storage:
        for storage.iter in range(60):
            subject.run_step()
        losses = [value for value, _ in storage.history("total_loss").values()]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] / 2
    assert all(p.dtype == torch.float32 for p in subject.model.parameters())
    assert subject.model.seen_dtype == (precision or torch.float32)


def test_without_mixed_precision_a_step_is_that_of_plain_sgd():
    subject, by_hand = trainer([batch()]), trainer([])
    with EventStorage():
        subject.run_step()
    by_hand.optimizer.zero_grad()
    sum(by_hand.model(batch()).values()).backward()
    by_hand.optimizer.step()
    for got, expected in zip(subject.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(got, expected)


def test_the_scale_of_the_loss_survives_a_checkpoint():
    subject = trainer([], torch.float16)
    subject.grad_scaler.load_state_dict({**subject.grad_scaler.state_dict(), "scale": 128.0})
    other = trainer([], torch.float16)
    other.load_state_dict(subject.state_dict())
    assert other.grad_scaler.get_scale() == 128.0


@pytest.mark.parametrize("first", PRECISIONS)
@pytest.mark.parametrize("second", PRECISIONS)
def test_a_run_can_be_resumed_with_another_precision(first, second):
    stopped, resumed = trainer([batch()], first), trainer([], second)
    with EventStorage(41):
        stopped.run_step()
    resumed.load_state_dict(stopped.state_dict())
    old, new = (each.optimizer.state_dict()["state"] for each in (stopped, resumed))
    assert old.keys() == new.keys() == {0, 1}
    assert all(torch.equal(old[i]["momentum_buffer"], new[i]["momentum_buffer"]) for i in old)
    assert resumed.grad_scaler.is_enabled() == (second is torch.float16)


class Normalized(Toy):
    """Keeps a running mean of its batches' first value, by Detectron2's own method."""

    def forward(self, data):
        normalizer = DenseDetector._ema_update(
            self, "loss_normalizer", float(data[0]["image"][0]), 100
        )
        return {name: loss / normalizer for name, loss in super().forward(data).items()}


def normalized_trainer(batches) -> MixedPrecisionTrainer:
    made = trainer(batches)
    made.model = Normalized()
    return made


def test_the_loss_normalizer_survives_a_checkpoint_also_one_taken_before_the_next_step():
    subject = normalized_trainer([batch(3.0), batch(7.0)])
    with EventStorage():
        subject.run_step()
        subject.run_step()
    expected = (100 * 0.9 + 3 * (1 - 0.9)) * 0.9 + 7 * (1 - 0.9)
    assert subject.state_dict()["loss_normalizers"] == [expected]
    second = normalized_trainer([])
    second.load_state_dict(subject.state_dict())
    assert second.model.loss_normalizer == expected
    third = normalized_trainer([batch(11.0)])
    third.load_state_dict(second.state_dict())
    with EventStorage():
        third.run_step()
    assert third.model.loss_normalizer == expected * 0.9 + 11 * (1 - 0.9)


def test_with_another_number_of_ranks_the_positives_of_the_batch_are_shared_out_anew():
    saved = {**normalized_trainer([]).state_dict(), "loss_normalizers": [10.0, 20.0, 60.0]}
    subject = normalized_trainer([])
    subject.load_state_dict(saved)
    assert subject.model.loss_normalizer == 90.0  # of three ranks, now of one
    assert subject.state_dict()["loss_normalizers"] == [90.0]


@pytest.mark.parametrize("absent", [False, True], ids=["none in the run", "an older checkpoint"])
def test_a_model_without_a_loss_normalizer_gets_none(absent):
    subject = trainer([batch()])
    with EventStorage():
        subject.run_step()
    saved = subject.state_dict()
    assert saved["loss_normalizers"] == []
    if absent:
        del saved["loss_normalizers"]
    other = trainer([])
    other.load_state_dict(saved)
    assert not hasattr(other.model, "loss_normalizer")


def test_a_resumed_retinanet_divides_its_losses_as_if_it_had_never_stopped(tmp_path):
    # Each batch holds all images, and which anchors are positive depends on anchors and boxes
    # alone: the running mean of their number is the same in each run of four iterations.
    cfg = load(
        "configs/quick/synthetic_retinanet.yaml",
        *data_keys(write_data(tmp_path, num_val=1)),
        *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 4),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RETINANET.NUM_CONVS", 1, "SEED", 1),
        *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.001),
        *("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", 2),
        *("TEST.EVAL_PERIOD", 0, "TEST.BEST_METRIC", "", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
        *("INPUT.RANDOM_FLIP", "none", "INPUT.RANDOM_SHIFT.PROB", 0.0, "OUTPUT_DIR", tmp_path),
    )

    def train(start: int, stop: int) -> list[float]:
        seed_all_rng(0)
        run = Trainer(cfg)
        run.test = lambda *_: {}
        run.resume_or_load(resume=start > 0)
        assert run.start_iter == start
        seen = [getattr(run.model, "loss_normalizer", 100.0)]
        with EventStorage(start) as run.storage:
            for run.iter in range(start, stop):
                run.run_step()
                seen.append(run.model.loss_normalizer)
        run.checkpointer.save("model", iteration=run.iter)
        return seen

    whole = train(0, 4)
    first, second = train(0, 2), train(2, 4)
    assert len(set(whole)) == 5 and whole[0] == 100.0
    assert first == whole[:3]
    assert second == whole[2:]


def _rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=CAP),
    )
    from detectron2.utils import comm

    comm.create_local_process_group(2)
    states = []
    for resumed_from in (None, f"{results}/checkpoint"):
        run = normalized_trainer([batch(3.0 + 4 * rank)])
        run.model = nn.parallel.DistributedDataParallel(run.model)
        if resumed_from:
            run.load_state_dict(torch.load(resumed_from))
        else:
            with EventStorage():
                run.run_step()
            if comm.is_main_process():
                torch.save(run.state_dict(), f"{results}/checkpoint")
            comm.synchronize()
        states.append(run.model.module.loss_normalizer)

    ids = (10 * rank + 1, 10 * rank + 2)
    subject = trainer([batch(ids=ids), batch(math.nan if rank == 1 else 1.0, ids)])
    subject.model = nn.parallel.DistributedDataParallel(subject.model)
    said = "nothing was raised"
    with EventStorage(41):
        subject.run_step()
        before = copy.deepcopy(subject.model.state_dict())
        try:
            subject.run_step()
        except NonFiniteLossError as error:
            said = str(error)
    same = all(torch.equal(before[k], v) for k, v in subject.model.state_dict().items())
    torch.save((said, same, states), f"{results}/{rank}")
    dist.barrier()
    # Not the interpreter's own end: gloo's threads, if they outlive it, abort the process now and
    # then, after all is done.
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[tuple[str, bool, list[float]]]:
    """What :func:`_rank` saves, of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_rank, str(folder / "store"), str(folder))
    return [torch.load(folder / str(rank)) for rank in range(2)]


def test_when_one_of_two_ranks_is_bad_both_stop_and_name_the_bad_ones_images(two_ranks):
    for said, weights_unchanged, _ in two_ranks:
        assert "rank 1: " in said and "11 (11.png), 12 (12.png)" in said
        assert "rank 0: " not in said and "1 (1.png)," not in said.replace("11 (11.png)", "")
        assert weights_unchanged


def test_each_rank_gets_its_own_loss_normalizer_back_from_the_checkpoint_of_the_first(two_ranks):
    for rank, (_, _, (trained, resumed)) in enumerate(two_ranks):
        assert resumed == trained == pytest.approx(100 * 0.9 + (3 + 4 * rank) * 0.1)
