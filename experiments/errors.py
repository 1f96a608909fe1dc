"""Errors a user can cause; commands show their message alone, without a stack trace."""

from __future__ import annotations

from yolof_d2.errors import UserError


class ExperimentError(UserError):
    """An error of a sweep, a cluster or its runs: what was got, what was expected, what to do."""


class RecordError(ExperimentError):
    """A record of a run that cannot be read: damaged, or written by another version."""
