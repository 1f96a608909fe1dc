"""Turn signals to a job into requests to stop; nothing is saved inside a handler."""

from __future__ import annotations

import signal
import time
from typing import Any

import submitit
from detectron2.utils import comm

from yolof_d2.engine import Trainer

_WAIT_FOR_END_SECONDS = 600.0  # a preemption's grace time, at most


class StopSignals:
    """Passes signals on to the trainer, and requeues where the signal asks for it.

    submitit's own handler, which requeues, is kept and called when the run has saved. SIGTERM alone
    (``scancel``, or a preemption that SLURM requeues by itself) saves and waits for the end: SLURM
    does not requeue a job that ends before it is ended.
    """

    def __init__(self, env: submitit.JobEnvironment):
        self._env = env
        self._requeue_signal = env._usr_sig()
        self._trainer: Trainer | None = None
        self._received = ""
        numbers = [signal.SIGTERM, self._requeue_signal]
        if env.cluster == "local":
            numbers.append(signal.SIGINT)  # Ctrl-C on the submit that started it
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def _receive(self, signum: int, frame: Any) -> None:
        name = signal.Signals(signum).name
        if signum == self._requeue_signal or not self._received:
            self._received = name
        if self._trainer is not None:
            self._trainer.request_stop(self._received)

    def stop_with(self, trainer: Trainer) -> None:
        """Pass requests on to a trainer, earlier ones included."""
        self._trainer = trainer
        if self._received:
            trainer.request_stop(self._received)

    def obey(self, name: str, rank: int) -> None:
        """Requeue the job, if the signal that stopped the run asks for it.

        Raises:
            SystemExit: the job was requeued.
        """
        comm.synchronize()  # until rank 0 has saved
        requeue = name == self._requeue_signal.name
        if requeue and rank == 0:
            handler = self._before[self._requeue_signal]
            if callable(handler):
                handler(self._requeue_signal, None)
        elif self._env.cluster == "slurm":
            # SLURM ends the other ranks when it requeues. One that left earlier would end rank 0.
            time.sleep(_WAIT_FOR_END_SECONDS)
        if requeue:
            raise SystemExit(0)

    def restore(self) -> None:
        """Put the former handlers back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
