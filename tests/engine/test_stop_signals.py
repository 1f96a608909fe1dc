from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from yolof_d2.engine import stop_signals
from yolof_d2.engine.stop_signals import STOP_SIGNALS, StopSignals


@pytest.fixture
def signals():
    made = StopSignals()
    yield made
    made.restore()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_asks_the_trainer_to_stop_also_one_that_came_before_it(signals, number):
    asked: list[str] = []
    os.kill(os.getpid(), number)
    signals.stop_with(SimpleNamespace(request_stop=asked.append))
    os.kill(os.getpid(), number)  # the launcher passes on what a terminal has sent
    assert asked == [number.name] * 2


def _press_twice(pause: float) -> None:
    signals = StopSignals()
    signals.stop_with(SimpleNamespace(request_stop=lambda _: None))
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(pause)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(0)


@pytest.mark.parametrize(("pause", "code"), [(0, 0), (1.2, 130)])
def test_a_second_ctrl_c_ends_the_process_at_once(pause, code):
    assert stop_signals._SAME_PRESS_SECONDS == 1.0
    process = multiprocessing.get_context("fork").Process(target=_press_twice, args=(pause,))
    process.start()
    process.join()
    assert process.exitcode == code


def _hear_nothing() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(900)


@pytest.mark.parametrize(("code", "survives"), [(1, False), (0, True)])
def test_ranks_that_hear_no_sigterm_end_with_the_first_that_fails(monkeypatch, code, survives):
    monkeypatch.setattr(stop_signals, "_GRACE_SECONDS", 0.2)
    fork = multiprocessing.get_context("fork")
    waiting = fork.Process(target=_hear_nothing)
    ended = fork.Process(target=os._exit, args=(code,))
    monkeypatch.setattr(stop_signals.multiprocessing, "active_children", lambda: [waiting, ended])
    waiting.start()
    ended.start()
    watch = threading.Thread(target=stop_signals._end_with_the_first_that_fails, args=(2,))
    watch.start()
    ended.join()
    waiting.join(timeout=2)
    assert waiting.is_alive() == survives
    waiting.kill()
    watch.join()
