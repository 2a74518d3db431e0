"""Errors that a user can put right: one clear message, no traceback on the command line.

Raise them before any expensive work, say what was got and what was expected, and name a way out. Each is also the
built-in error that Python users would expect (``ValueError`` for a wrong argument, and so on).
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can change; ``st2v`` prints the message on one line and exits with code 2."""


class InputError(UserError, ValueError):
    """A wrong argument: prompt, number of frames, preset, sampler, tensor shape or range."""


class WeightsError(UserError, RuntimeError):
    """Weights that are missing, damaged or made for another config."""


class DeviceError(UserError, RuntimeError):
    """A device that was asked for and is absent, or too small."""


class OutputError(UserError, OSError):
    """A place that cannot be written."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
