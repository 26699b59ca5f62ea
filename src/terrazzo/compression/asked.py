"""A compression as it is asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terrazzo.compression.goal import Effort, Goal
from terrazzo.compression.offers import Offer
from terrazzo.compression.proof_file import Proof
from terrazzo.compression.recover import EFFORTS
from terrazzo.compression.report import REPORT
from terrazzo.compression.speed import Here
from terrazzo.config import nearest
from terrazzo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A compression as it is asked for: see `pipeline.compress`."""

    model: str
    data: str
    goal: Goal
    out: Path
    held_out: str | None = None
    texts: str | None = None
    on: Here = Here()
    effort: Effort = "minutes"
    fields: Mapping[str, str] | None = None
    seed: int = 0


def asked_for(
    model: str | Path,
    data: str | Path,
    goal: Goal,
    out: str | Path,
    held_out: str | Path | None = None,
    on: Here | None = None,
    effort: str = "minutes",
    fields: Mapping[str, str] | None = None,
    seed: int = 0,
    texts: str | Path | None = None,
) -> Asked:
    """What a person asks for, checked as far as that takes no files.

    Raises:
        InputError: a negative seed, or an unknown effort.
    """
    if seed < 0:
        raise InputError(f"seed {seed}: from 0")
    if effort not in EFFORTS:
        raise InputError(f"effort {effort!r}: {nearest(effort, EFFORTS)}")
    return Asked(
        model=str(model),
        data=str(data),
        goal=goal,
        out=Path(out),
        held_out=None if held_out is None else str(held_out),
        texts=None if texts is None else str(texts),
        on=on or Here(),
        effort="hours" if effort == "hours" else "minutes",
        fields=fields,
        seed=seed,
    )


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
