"""A proof beside the one that was measured before: which figures agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from terrazzo.compression.proof_file import Proof

#: Shares by which a factor, and points by which a drop, may differ when they are measured again.
FACTOR_TOLERANCE, POINTS_TOLERANCE = 0.10, 0.1


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A proof measured again.

    Args:
        before, now: both proofs; differing: figures that do not agree.
    """

    before: Proof
    now: Proof
    differing: tuple[str, ...]

    def lines(self) -> list[str]:
        """A table of every figure, before and now."""
        rows = [("figure", "proof.json", "now", "")]
        rows += [(*shown, self._verdict(shown[0])) for shown in _shown(self.before, self.now)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _verdict(self, name: str) -> str:
        if name not in compared(self.before, self.now):
            return ""
        return "DIFFERS" if name in self.differing else "agrees"


def _shown(before: Proof, now: Proof) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, of, form in _FIGURES:
        one, other = of(before), of(now)
        rows.append((name, _text(one, form), _text(other, form)))
    return rows


def _text(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def differing(before: Proof, now: Proof) -> tuple[str, ...]:
    """The names of the figures that do not agree."""
    figures = compared(before, now).items()
    return tuple(name for name, (one, other) in figures if not abs(one - other) <= _tolerance(name, one))


def compared(before: Proof, now: Proof) -> dict[str, tuple[float, float]]:
    """The figures that can agree: those measured twice, speeds on one machine alone, as factors and not in ms."""
    found = {}
    for name, of, _ in _FIGURES:
        one, other, speed = of(before), of(now), name in _SPEEDS
        if one is not None and other is not None and name != _MS and (before.machine == now.machine or not speed):
            found[name] = one, other
    return found


def _tolerance(name: str, before: float) -> float:
    if name == _SIZE:
        return 1e-6 * before
    return FACTOR_TOLERANCE * before if name in _SPEEDS else POINTS_TOLERANCE


def _speed(name: str) -> Callable[[Proof], float | None]:
    def of(proof: Proof) -> float | None:
        return None if proof.speeds is None else float(getattr(proof.speeds, name))

    return of


_FASTER, _FASTER_PLAIN, _MS, _SIZE = (
    "times the fastest fp32 runtime",
    "times plain PyTorch",
    "ms a batch",
    "times as small",
)
_SPEEDS = (_FASTER, _FASTER_PLAIN, _MS)
_FIGURES: tuple[tuple[str, Callable[[Proof], float | None], str], ...] = (
    (_FASTER, _speed("faster"), ".2f"),
    (_FASTER_PLAIN, _speed("faster_plain"), ".2f"),
    (_MS, _speed("ms"), ".3f"),
    ("metric of the dense model", lambda proof: proof.quality.dense, ".2f"),
    ("metric of the compressed model", lambda proof: proof.quality.small, ".2f"),
    ("drop in points", lambda proof: proof.quality.drop, ".2f"),
    ("drop at most", lambda proof: proof.quality.drop_most, ".2f"),
    (_SIZE, lambda proof: proof.size.smaller, ".2f"),
)
