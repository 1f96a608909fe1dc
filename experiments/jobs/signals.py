"""What a signal to a job means: the trainer stops, and some jobs are requeued."""

from __future__ import annotations

import signal
import time

import submitit
from detectron2.utils import comm

from yolof_d2.engine.stop_signals import StopSignals

_WAIT_FOR_END_SECONDS = 600.0  # a preemption's grace time, at most


class JobSignals(StopSignals):
    """Passes signals on to the trainer, and requeues where the signal asks for it.

    submitit's own handler, which requeues, is kept and called when the run has saved. SIGTERM alone
    (``scancel``, or a preemption that SLURM requeues by itself) saves and waits for the end: SLURM
    does not requeue a job that ends before it is ended.
    """

    def __init__(self, env: submitit.JobEnvironment):
        self._env = env
        self._requeue_signal = env._usr_sig()
        numbers = [signal.SIGTERM, self._requeue_signal]
        if env.cluster == "local":
            numbers.append(signal.SIGINT)  # Ctrl-C on the submit that started it
        super().__init__(numbers)

    def _note(self, name: str) -> None:
        if name == self._requeue_signal.name or not self._received:
            self._received = name

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
