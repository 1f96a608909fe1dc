"""Tell the problems of data sets: format, write and log them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolof_d2.errors import DataError
from yolof_d2.files import write_text

logger = logging.getLogger(__name__)

REPORT_NAME = "data_report.txt"
"""File in OUTPUT_DIR that holds the whole report."""

_MAX_PER_KIND = 10  # lines in the log and in the error


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        severity: "error" stops the run, "warning" does not.
        kind: rule that was broken, see the table in :mod:`.rules`.
        json_file: path of the annotation file (or the data set's name if it has none).
        image: file name of the image concerned, its id if no name is known, None if it is about
            no image.
        annotation_id: id of the annotation concerned, or None.
        message: what is wrong, what was expected and, where not obvious, what to do.
    """

    severity: Literal["error", "warning"]
    kind: str
    json_file: str
    image: str | int | None
    annotation_id: int | str | None
    message: str

    def __str__(self) -> str:
        where = []
        if self.image is not None:
            where.append(f"image {self.image!r}")
        if self.annotation_id is not None:
            where.append(f"annotation {self.annotation_id!r}")
        return f"{', '.join(where)}: {self.message}" if where else self.message


def format_report(problems: Sequence[Problem], *, max_per_kind: int | None = None) -> str:
    """Format a readable report: per json the errors first, grouped by kind, with exact counts.

    Args:
        problems: of any number of files.
        max_per_kind: lines shown per file, severity and kind; None = all.

    Returns:
        Text of several lines, without a final newline.
    """
    lines: list[str] = []
    for json_file in dict.fromkeys(problem.json_file for problem in problems):
        own = [problem for problem in problems if problem.json_file == json_file]
        lines.append(f"{json_file}: {_count(own)}")
        groups: dict[tuple[str, str], list[Problem]] = {}
        for problem in sorted(own, key=lambda problem: problem.severity):  # "error" comes first
            groups.setdefault((problem.severity, problem.kind), []).append(problem)
        for (severity, kind), members in groups.items():
            lines.append(f"  {severity} {kind} ({len(members)})")
            shown = members[:max_per_kind]
            lines += (f"    {problem}" for problem in shown)
            if len(shown) < len(members):
                lines.append(f"    ... and {len(members) - len(shown)} more")
    return "\n".join(lines)


def has_errors(problems: Sequence[Problem]) -> bool:
    """Tell whether a problem stops the run."""
    return any(problem.severity == "error" for problem in problems)


def write_report(path: Path, problems: Sequence[Problem]) -> None:
    """Write the whole report; without problems, remove that of an earlier run."""
    if problems:
        write_text(path, format_report(problems) + "\n", durable=False)
    else:
        path.unlink(missing_ok=True)


def raise_or_warn(problems: Sequence[Problem], path: Path) -> None:
    """Tell problems in a shortened report, which names ``path`` for the whole one.

    Raises:
        DataError: there is at least one error; its message holds the report.
    """
    report = format_report(problems, max_per_kind=_MAX_PER_KIND)
    told = f"{_count(problems)}. Whole report: {path}\n{report}"
    if has_errors(problems):
        raise DataError(f"The data cannot be used: {told}")
    if problems:
        logger.warning("Data: %s", told)


def _count(problems: Sequence[Problem]) -> str:
    num_errors = sum(problem.severity == "error" for problem in problems)
    num_warnings = len(problems) - num_errors
    return (
        f"{num_errors} error{'s' * (num_errors != 1)}, "
        f"{num_warnings} warning{'s' * (num_warnings != 1)}"
    )
