"""The course of training as TensorBoard scalars; needs the extra `track`."""

from __future__ import annotations

import math
from pathlib import Path

from terrazzo.errors import InputError
from terrazzo.train.hooks import Line

_AXES = ("step", "stage", "tokens", "seconds")


class TensorBoardHook:
    """Writes every number of a line as a scalar: `train/NAME` of steps, `heldout/NAME` of evaluations.

    Args:
        logdir: folder for the event files.
        resume_step: steps done by the checkpoint that the run goes on from; later points of earlier files are hidden.

    Raises:
        InputError: the extra `track` is not installed.
    """

    def __init__(self, logdir: str | Path, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"tensorboard=true: TensorBoard is not installed ({error}); "
                "pip install 'terrazzo[track]', or leave tensorboard out: metrics.jsonl holds the same numbers"
            ) from None
        self._writer = SummaryWriter(str(logdir), purge_step=None if resume_step is None else resume_step + 1)

    def on_step(self, line: Line) -> None:
        """Write the numbers of a training line."""
        self._write("train", line)

    def on_evaluation(self, line: Line) -> None:
        """Write the numbers of an evaluation line, and with it everything before."""
        self._write("heldout", {name.removeprefix("heldout_"): value for name, value in line.items()})
        self._writer.flush()

    def on_message(self, text: str) -> None:
        """Nothing: scalars only."""

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, group: str, line: Line) -> None:
        for name, value in line.items():
            if name not in _AXES and isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])
