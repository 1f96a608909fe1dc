"""Plant faults in the code, one at a time, and see which of them the tests catch: ``make mutants``.

``faults.yaml`` lists the faults by file. Each has the old text, which must be in the file exactly
once, the new one, what it breaks, and the tests that should fail. A fault that no test can catch
says why (``survives``), and counts as not caught.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

REQUIRED = 0.9
ROOT = Path(__file__).parents[2]

_WRONG_ENTRIES = {
    "MOVED": "the old text is not in the file exactly once; correct the entry",
    "CAUGHT": "a fault that was said to survive; remove its 'survives'",
}
_FORK = multiprocessing.get_context("fork")
_checkout: Path  # the copy of this worker


@dataclass(frozen=True)
class Fault:
    """A fault to plant; see the module."""

    file: str
    breaks: str
    old: str
    new: str
    tests: list[str]
    survives: str = ""

    def place(self, root: Path) -> str:
        """Return file and line; the line is ``?`` unless the old text is there exactly once."""
        before, *after = (root / self.file).read_text().split(self.old)
        return f"{self.file}:{before.count(chr(10)) + 1 if len(after) == 1 else '?'}"


def read_faults(path: Path, pattern: str) -> tuple[list[str], list[Fault]]:
    """Return the packages to import first, and the faults with ``pattern`` in file or effect."""
    content = yaml.safe_load(path.read_text())
    faults = [
        Fault(**{"file": file, "tests": group["tests"], **fault})
        for file, group in content["files"].items()
        for fault in group["faults"]
    ]
    return content.get("preload", []), [f for f in faults if pattern in f"{f.file} {f.breaks}"]


def _copy_checkout(root: Path, folder: str) -> None:
    global _checkout
    _checkout = Path(tempfile.mkdtemp(dir=folder), "checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (_checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, _checkout / name)


def _pytest(log: Path, tests: Sequence[str]) -> None:
    status = 3
    try:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(_checkout)
        for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "__main__")]:
            del sys.modules[name]  # they are those of the real checkout
        sys.modules["__main__"] = types.ModuleType("__main__")  # what spawned processes look for
        sys.path.insert(0, str(_checkout))
        os.environ.update(PYTHONPATH=str(_checkout), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        words = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={_checkout.parent / 'tmp'}"]
        status = int(pytest.main([*words, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def _run_tests(tests: Sequence[str], timeout_s: float) -> tuple[str, str]:
    """Run tests in a fork, which has the slow imports already; return verdict and output."""
    log = _checkout.parent / "log"
    process = _FORK.Process(target=_pytest, args=(log, tests))
    process.start()
    deadline = time.monotonic() + timeout_s
    # Not join(timeout), which also waits for what the tests left running.
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.05)
    verdict = {None: "time-out", 0: "passed"}.get(process.exitcode, "failed")
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # also what the tests left running
    process.join()
    return verdict, log.read_text(errors="replace")


def _plant(number: int, fault: Fault, timeout_s: float) -> str:
    """Return the verdict on one fault."""
    path = _checkout / fault.file
    text, status = path.read_text(), path.stat()
    if text.count(fault.old) != 1:
        return "MOVED"
    try:
        path.write_text(text.replace(fault.old, fault.new))
        os.utime(path, (number, number))  # Python's bytecode cache knows a file by its time
        verdict, _ = _run_tests(fault.tests, timeout_s)
    finally:
        path.write_text(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if verdict == "passed":
        return "survives" if fault.survives else "SURVIVED"
    return "CAUGHT" if fault.survives else "caught" if verdict == "failed" else verdict


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").split(":")[0])
    parser.add_argument("-k", default="", metavar="TEXT", help="only faults with this text")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds; longer is caught")
    parser.add_argument("--list", action="store_true", help="show the faults; run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to test")
    parser.add_argument("--faults", type=Path, default=Path(__file__).with_name("faults.yaml"))
    args = parser.parse_args(words)
    preload, faults = read_faults(args.faults, args.k)
    if args.list or not faults:
        print(*(f"{each.place(args.root)}  {each.breaks}" for each in faults), sep="\n")
        return 0 if faults else 2
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in preload:
        importlib.import_module(name)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ProcessPoolExecutor(args.jobs, _FORK, _copy_checkout, (args.root, folder)) as pool,
    ):
        tests = sorted({test for fault in faults for test in fault.tests})
        verdict, said = pool.submit(_run_tests, tests, 3600).result()
        if verdict != "passed":
            print(f"{said[-5000:]}\nThe tests must pass before a fault is planted")
            return 2
        numbers = range(1, len(faults) + 1)
        verdicts = []
        found = pool.map(_plant, numbers, faults, [args.timeout] * len(faults))
        for fault, verdict in zip(faults, found, strict=True):
            reason = f" ({fault.survives})" if fault.survives else ""
            print(f"{verdict:9} {fault.place(args.root)}  {fault.breaks}{reason}", flush=True)
            verdicts.append(verdict)
    caught = verdicts.count("caught") + verdicts.count("time-out")
    print(f"{caught} of {len(faults)} caught ({caught / len(faults):.1%}; needed {REQUIRED:.0%})")
    wrong = [verdict for verdict in _WRONG_ENTRIES if verdict in verdicts]
    for verdict in wrong:
        print(f"{verdict}: {_WRONG_ENTRIES[verdict]}")
    return int(caught < REQUIRED * len(faults) or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
