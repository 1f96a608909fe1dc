"""Check parts against the contracts of their slots; see docs/adding_a_part.md.

python -m yolof_d2.conformance my_parts.py [KEY VALUE ...]
python -m yolof_d2.conformance --part encoder/DilatedEncoder [KEY VALUE ...]
python -m yolof_d2.conformance --all [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import unittest
from collections import Counter
from collections.abc import Iterable, Sequence

from yolof_d2.errors import UserError

from .expectations import ConformanceError
from .suite import Case, find_cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per check; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every registered part")
    which.add_argument("--part", default="", metavar="SLOT/NAME", help="one registered part")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="without --all or --part first the file, folder or module with your parts; "
        "then KEY VALUE pairs that override the config",
    )
    args = parser.parse_args(arguments)
    words = list(args.words)
    if not (args.all or args.part or words):
        parser.error("name a file with your parts, or --part SLOT/NAME, or --all")
    plugin = "" if args.all or args.part else words.pop(0)
    try:
        cases = find_cases(plugin, words, part=args.part)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    return 1 if run_cases(cases)["FAILED"] else 0


def run_cases(cases: Iterable[Case]) -> Counter[str]:
    """Run and report ``cases``; return the number of each outcome."""
    counts: Counter[str] = Counter()
    for part, cases_of_part in itertools.groupby(cases, key=lambda case: case.part):
        for case in cases_of_part:
            outcome, why = _run(case)
            counts[outcome] += 1
            _write(f"{part}  {case.check.__name__}  {outcome}{why}")
            if outcome == "FAILED" and case.is_first:
                break  # no part, so nothing for the other checks
    _write(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("ok", "FAILED", "skipped")))
    return counts


def _run(case: Case) -> tuple[str, str]:
    try:
        case.run()
    except ConformanceError as error:
        return "FAILED", f": {error}"
    except unittest.SkipTest as reason:
        return "skipped", f": {reason}"
    return "ok", ""


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
