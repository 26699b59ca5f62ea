"""A compression as it is asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terrazzo.compression.goal import Goal
from terrazzo.compression.offers import Offer
from terrazzo.compression.proof_file import Proof
from terrazzo.compression.recover import Effort
from terrazzo.compression.report import REPORT
from terrazzo.compression.speed import Here


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A compression as it is asked for: see `pipeline.compress`."""

    model: str
    data: str
    goal: Goal
    out: Path
    held_out: str | None = None
    on: Here = Here()
    effort: Effort = "minutes"
    fields: Mapping[str, str] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What a compression came to.

    Args:
        folder: the model, ready to serve; proof: of every figure; offers: everything that was made on the way, the
            chosen one last.
    """

    folder: Path
    proof: Proof
    offers: tuple[Offer, ...]
    seconds: float

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.folder / REPORT

    def __str__(self) -> str:
        return "\n".join(self.proof.lines())
