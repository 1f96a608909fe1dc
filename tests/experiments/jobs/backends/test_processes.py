from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from experiments.errors import ExperimentError
from experiments.jobs.backends import BACKENDS, processes
from experiments.jobs.backends.processes import process_start
from experiments.store.ledger import Ledger
from experiments.store.records import Submission


def test_only_the_host_of_a_run_cancels_it(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(processes.os, "kill", lambda *words: killed.append(words))
    ledger = Ledger(tmp_path)
    with pytest.raises(ExperimentError, match=r"a process of elsewhere.*cancel it there"):
        BACKENDS["local"].cancel(ledger, Submission(token="t", host="elsewhere"), ["1"])
    assert not killed and ledger.read_submission("t") is None
    BACKENDS["local"].cancel(ledger, Submission(token="t", host=socket.gethostname()), ["1"])
    noted = ledger.read_submission("t")
    assert killed == [(1, signal.SIGTERM)] and noted is not None and noted.cancelled


def test_a_process_that_ended_has_no_start_though_nobody_waited_for_it():
    assert process_start(str(os.getpid()))
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(str(process.pid)) is None
