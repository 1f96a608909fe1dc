from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from experiments.jobs.signals import JobSignals


@pytest.fixture
def requeued() -> Iterator[list[int]]:
    """What submitit's handler, which requeues, was called with."""
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: calls.append(number))
    yield calls
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def signals(requeued) -> Iterator[JobSignals]:
    made = JobSignals(SimpleNamespace(cluster="local", _usr_sig=lambda: signal.SIGUSR2))
    yield made
    made.restore()


def test_a_signal_stops_the_trainer_also_one_that_came_before_it(signals, requeued):
    asked: list[str] = []
    os.kill(os.getpid(), signal.SIGUSR2)
    signals.stop_with(SimpleNamespace(request_stop=asked.append))
    os.kill(os.getpid(), signal.SIGTERM)  # does not undo the request to be requeued
    assert asked == ["SIGUSR2", "SIGUSR2"] and not requeued


def test_rank_0_alone_requeues_and_only_when_the_signal_asks_for_it(signals, requeued):
    signals.obey("SIGTERM", 0)
    assert not requeued
    for rank in (1, 0):
        assert not requeued
        with pytest.raises(SystemExit):
            signals.obey("SIGUSR2", rank)
    assert requeued == [signal.SIGUSR2]
