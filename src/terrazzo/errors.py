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


class DivergedError(RunError):
    """A run whose loss or weights are no longer finite, or whose loss has risen for good.

    Args:
        what: the step and what was found there; advice: what else to know, and the mend.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}. {advice}")
        self.what = what
