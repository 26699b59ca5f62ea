"""What the loop tells while it runs: one protocol for everything that writes or shows the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

#: One line of metrics.jsonl. Every training line has "step", the number of steps done with it, counted from 1.
Line = Mapping[str, Any]


class Hook(Protocol):
    """A listener of the loop, which calls it on rank 0 alone.

    A hook reads the numbers it is given and never the model, so that listening changes nothing.
    """

    def on_step(self, line: Line) -> None:
        """After each optimizer step, with the training line; its "progress" is the share of the stage done, 0 to 1."""

    def on_evaluation(self, line: Line) -> None:
        """After each evaluation on held-out documents."""

    def on_message(self, text: str) -> None:
        """A remark for the person: a checkpoint written, a stage begun, a signal received."""

    def close(self) -> None:
        """Once, when the loop ends for whatever reason."""
