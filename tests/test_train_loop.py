from __future__ import annotations

import copy
import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage
from torch import nn

from yolof_d2.errors import NonFiniteLossError, UserError
from yolof_d2.train_loop import MixedPrecisionTrainer

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
    trainer([], second).load_state_dict(trainer([], first).state_dict())


def test_only_fp16_scales_the_loss():
    scaled = [trainer([], precision).grad_scaler.is_enabled() for precision in PRECISIONS]
    assert scaled == [False, False, True]


def _rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    from detectron2.utils import comm

    comm.create_local_process_group(2)
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
    torch.save((said, same), f"{results}/{rank}")
    dist.destroy_process_group()


def test_when_one_of_two_ranks_is_bad_both_stop_and_name_the_bad_ones_images(tmp_path):
    context = mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, join=False)
    try:
        deadline = 60
        while not context.join(timeout=5):
            deadline -= 5
            assert deadline > 0, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    for rank in range(2):
        said, weights_unchanged = torch.load(tmp_path / str(rank))
        assert "rank 1: " in said and "11 (11.png), 12 (12.png)" in said
        assert "rank 0: " not in said and "1 (1.png)," not in said.replace("11 (11.png)", "")
        assert weights_unchanged
