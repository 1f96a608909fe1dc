from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from tests.waiting import wait_until
from yolof_d2.engine import run_lock
from yolof_d2.engine.run_lock import beat, lock_run, unlock_run
from yolof_d2.errors import ConfigError


def _hold(folder: str) -> None:
    lock_run(folder)
    Path(folder, "locked").touch()
    time.sleep(900)


@pytest.fixture
def other(tmp_path):
    """A process that trains in the folder."""
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path),))
    process.start()
    wait_until((tmp_path / "locked").exists)
    yield process
    process.kill()
    process.join()


def test_a_second_training_is_refused_and_told_of_the_first(tmp_path, other):
    said = rf"{tmp_path} \(process {other.pid} on {socket.gethostname()}, for 0 minutes\)"
    with pytest.raises(ConfigError, match=said):
        lock_run(str(tmp_path))


def test_the_lock_ends_with_its_process_also_when_that_is_killed(tmp_path, other):
    other.kill()
    other.join()
    lock_run(str(tmp_path))
    lock_run(str(tmp_path))  # once more is no error
    unlock_run(str(tmp_path))
    assert not (tmp_path / ".lock").exists()


def test_a_child_of_the_first_does_not_keep_its_lock(tmp_path):
    lock_run(str(tmp_path))
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(900,))
    child.start()
    unlock_run(str(tmp_path))
    taker = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path),))
    taker.start()
    wait_until((tmp_path / "locked").exists, say=lambda: taker.exitcode)
    for process in (child, taker):
        process.kill()
        process.join()


@pytest.mark.parametrize(("age", "refused"), [(10, True), (1000, False)])
def test_where_locks_do_not_reach_other_hosts_the_age_counts(tmp_path, monkeypatch, age, refused):
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": time.time() - 3600}))
    os.utime(lock, (time.time() - age,) * 2)
    if refused:
        with pytest.raises(ConfigError, match="process 7 on elsewhere, for 60 minutes"):
            lock_run(str(tmp_path))
        return
    lock_run(str(tmp_path))
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    for due in (0.0, time.monotonic() + 1000):
        os.utime(lock, (time.time() - age,) * 2)
        monkeypatch.setitem(run_lock._next_beat, str(tmp_path), due)
        beat(str(tmp_path))
        assert (time.time() - lock.stat().st_mtime < 100) == (due == 0)
    unlock_run(str(tmp_path))
