"""Waiting for other processes as long as they live, since a busy machine may take its time."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, Popen

CAP = 900  # seconds, after which something hangs


def wait_until(
    condition: Callable[[], object],
    process: Popen | None = None,
    *,
    say: Callable = lambda: "",
    every: float = 0.1,
) -> None:
    """Wait until a condition holds; fail when the process that should bring it about has ended.

    Args:
        condition: is asked again and again.
        process: the one that works for it, where there is one.
        say: called when it fails, for the message.
        every: seconds between two questions; more where a question costs as much as a process.
    """
    deadline = time.monotonic() + CAP
    while True:
        ended = process is not None and process.poll() is not None
        if condition():
            return
        assert not ended, f"the process ended before it happened: {say()}"
        assert time.monotonic() < deadline, f"it did not happen in {CAP} s: {say()}"
        time.sleep(every)


def spawn(rank: Callable[..., None], *arguments: object, ranks: int = 2) -> None:
    """Run ``rank(number, *arguments)`` in processes of their own, until all have ended well."""
    import torch.multiprocessing as mp

    # Forked from one process that has imported all of it and done nothing yet.
    mp.set_forkserver_preload([rank.__module__])
    context = mp.start_processes(rank, arguments, ranks, join=False, start_method="forkserver")
    try:
        wait_until(lambda: context.join(timeout=1), say=lambda: "the ranks wait for each other")
    finally:
        for process in context.processes:
            process.kill()


def join(processes: Sequence[BaseProcess]) -> None:
    """Wait until all have ended well; at the first that fails, kill the others, and fail."""

    def over() -> bool:
        codes = [process.exitcode for process in processes]
        return any(codes) or None not in codes

    try:
        wait_until(over, say=lambda: [process.exitcode for process in processes])
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_script(script: Path, *words: object, cwd: Path) -> CompletedProcess:
    """Run a script in a fork of this process, which has torch: 0 or 1, and all that it printed."""
    command = [str(script), *map(str, words)]
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(cwd)
            sys.argv, sys.stdout, sys.stderr = command, output, output
            failure: object = None
            try:
                runpy.run_path(command[0], run_name="__main__")
            except BaseException as end:  # noqa: BLE001  pytest must not go on in the fork
                failure = end.code if isinstance(end, SystemExit) else traceback.format_exc()
            if isinstance(failure, str):
                output.write(failure)
            output.flush()
            os._exit(bool(failure))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return CompletedProcess(command, os.waitstatus_to_exitcode(status), output.read(), "")
