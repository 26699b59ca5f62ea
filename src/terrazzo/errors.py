"""The one exception that means "your input, not our code"."""

from __future__ import annotations


class InputError(ValueError):
    """Something the person gave cannot be used.

    The message names the file, the line or field, the value, and the mend. The command line prints it without a
    traceback and exits with status 2; every other exception is a defect and keeps its traceback.
    """


class RunError(RuntimeError):
    """A run cannot go on: it diverged, the disk is full, a rank was lost.

    The message says what happened at which step, and which checkpoint to continue from. The command line prints it
    without a traceback and exits with status 3.
    """
