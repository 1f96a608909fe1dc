"""Errors a user can cause; commands show their message alone, without a stack trace."""

from __future__ import annotations


class UserError(Exception):
    """An error the user can fix; the message says what was got, what was expected, what to do."""


class ConfigError(UserError, ValueError):
    """A configuration key or value that is unknown, misplaced or impossible."""


class DataError(UserError, ValueError):
    """A data set, annotation file or image that cannot be used."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training stopped because a loss became infinite or NaN."""


class TrainingStopped(BaseException):
    """Training was asked to stop, and has saved a checkpoint to go on from.

    It is no error: like ``KeyboardInterrupt``, it is not an ``Exception``.
    """
