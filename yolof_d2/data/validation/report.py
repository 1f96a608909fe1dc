"""Problems of data sets, and the report of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detectron2.utils import comm

from yolof_d2.errors import DataError
from yolof_d2.files import write_text

logger = logging.getLogger(__name__)

REPORT_NAME = "data_report.txt"
"""File in OUTPUT_DIR that holds the whole report."""


@dataclass(frozen=True)
class Problem:
    """One problem of a data set."""

    severity: Literal["error", "warning"]  # an error stops the run
    kind: str  # rule that was broken, see the table in yolof_d2.data.validation.rules
    json_file: str  # path of the annotation file, or the data set's name if it has none
    image: str | int | None  # file name of the image concerned, or its id if it has no name
    annotation_id: int | str | None
    message: str  # what is wrong, what was expected and, where not obvious, what to do

    def __str__(self) -> str:
        places = {"image": self.image, "annotation": self.annotation_id}
        where = ", ".join(f"{name} {at!r}" for name, at in places.items() if at is not None)
        return f"{where}: {self.message}" if where else self.message


def format_report(problems: Sequence[Problem], *, max_per_kind: int | None = None) -> str:
    """Return a report of several lines: per json, errors first, grouped by kind and counted.

    It has at most ``max_per_kind`` lines per file, severity and kind.
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
    """Return whether a problem stops the run."""
    return any(problem.severity == "error" for problem in problems)


def report_problems(problems: Sequence[Problem], path: Path) -> None:
    """Write the whole report to ``path``, and raise or log a shortened one.

    Without problems, the report of an earlier run is removed. Only the main process writes.

    Raises:
        DataError: there is at least one error; its message holds the shortened report.
    """
    if comm.is_main_process():
        if problems:
            write_text(path, format_report(problems) + "\n", durable=False)
        else:
            path.unlink(missing_ok=True)
    report = format_report(problems, max_per_kind=10)
    message = f"{_count(problems)}. Whole report: {path}\n{report}"
    if has_errors(problems):
        raise DataError(f"The data cannot be used: {message}")
    if problems:
        logger.warning("Data: %s", message)


def _count(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
