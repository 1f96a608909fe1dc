"""Check a COCO-format data set; exit code 1 if it has errors.

python -m yolof_d2.data.validation JSON IMAGES [--headers] [--use train|test]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from .report import format_report, has_errors
from .rules import CocoCheck


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of one json, and return the exit code: 1 if there is any error."""
    parser = argparse.ArgumentParser(
        prog="python -m yolof_d2.data.validation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("json", help="COCO annotation file")
    parser.add_argument("images", help="folder that file_name in the json is relative to")
    parser.add_argument(
        "--headers", action="store_true", help="also open every image and compare its size"
    )
    parser.add_argument(
        "--use",
        choices=("train", "test"),
        help="apply only the rules for training or for test data (default: both)",
    )
    args = parser.parse_args(arguments)
    limit = math.inf if args.headers else 0
    use = {"training": args.use != "test", "evaluation": args.use != "train"}
    check = CocoCheck(args.json, args.images, **use, header_limit=limit).run()
    if check.problems:
        sys.stdout.write(format_report(check.problems) + "\n")
    sys.stdout.write(f"{check.counts}: {len(check.problems) or 'no'} problems\n")
    return int(has_errors(check.problems))


if __name__ == "__main__":
    sys.exit(main())
