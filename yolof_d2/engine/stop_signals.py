"""Turn signals into requests to stop; nothing is saved inside a handler."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import Trainer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_GRACE_SECONDS = 60.0  # of the other ranks, after one has failed
_SAME_PRESS_SECONDS = 1.0  # a terminal and the launcher may both pass on one Ctrl-C


def pass_on_to_ranks(count: int) -> None:
    """Pass signals on to the ``count`` ranks that this process will start; end all if one fails."""

    def pass_on(number: int, frame: Any) -> None:
        for rank in multiprocessing.active_children():
            if rank.pid is not None:
                os.kill(rank.pid, number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    threading.Thread(target=_end_with_the_first_that_fails, args=(count,), daemon=True).start()


def _end_with_the_first_that_fails(count: int) -> None:
    # The launcher sends SIGTERM, which a rank that waits in a GPU collective for a dead one never
    # comes to handle.
    ranks: list[Any] = []
    while len(ranks) < count:
        time.sleep(0.1)
        ranks = multiprocessing.active_children()
    while ranks:
        ended = wait([rank.sentinel for rank in ranks])
        time.sleep(_GRACE_SECONDS)  # by now the launcher, too, has seen it
        if any(rank.exitcode for rank in ranks if rank.sentinel in ended):
            for rank in ranks:
                rank.kill()
            return
        ranks = [rank for rank in ranks if rank.sentinel not in ended]


class StopSignals:
    """Asks a trainer to save and stop when a signal comes; a second Ctrl-C ends the process."""

    def __init__(self, numbers: Iterable[signal.Signals] = STOP_SIGNALS):
        self._trainer: Trainer | None = None
        self._received = ""
        self._pressed = 0.0  # when Ctrl-C came first
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def _receive(self, signum: int, frame: Any) -> None:
        now = time.monotonic()
        if signum == signal.SIGINT and self._pressed and now - self._pressed > _SAME_PRESS_SECONDS:
            os._exit(128 + signum)  # at once: loader workers end with this process
        if signum == signal.SIGINT and not self._pressed:
            self._pressed = now
        self._note(signal.Signals(signum).name)
        if self._trainer is not None:
            self._trainer.request_stop(self._received)

    def _note(self, name: str) -> None:
        self._received = self._received or name

    def stop_with(self, trainer: Trainer) -> None:
        """Pass requests on to a trainer, earlier ones included."""
        self._trainer = trainer
        if self._received:
            trainer.request_stop(self._received)

    def restore(self) -> None:
        """Put the former handlers back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
