"""Run a command line tool. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable

from yolof_d2.errors import UserError


def run_command(name: str, run: Callable[[], object]) -> int:
    """Call ``run`` with the log of ``name`` on the standard error; return the exit code.

    Errors that a user can cause, and those of files, end in their message.
    """
    logging.basicConfig(format="%(message)s")
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    try:
        run()
    except (UserError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    return 0
