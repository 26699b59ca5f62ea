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
        rows += [(n, a, b, "DIFFERS" if n in self.differing else "agrees") for n, a, b in _shown(self.before, self.now)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(before: Proof, now: Proof) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, of, form in _FIGURES:
        one, other = of(before), of(now)
        rows.append((name, _text(one, form), _text(other, form)))
    return rows


def _text(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def differing(before: Proof, now: Proof) -> tuple[str, ...]:
    """The names of the figures that do not agree; what was not measured twice cannot."""
    found = []
    for name, of, _ in _FIGURES:
        one, other = of(before), of(now)
        if one is None or other is None or name.startswith("ms "):
            continue
        tolerance = POINTS_TOLERANCE if name.startswith(("drop", "metric")) else FACTOR_TOLERANCE * abs(one)
        if abs(one - other) > tolerance:
            found.append(name)
    return tuple(found)


def _speed(name: str) -> Callable[[Proof], float | None]:
    def of(proof: Proof) -> float | None:
        return None if proof.speeds is None else float(getattr(proof.speeds, name))

    return of


_FIGURES: tuple[tuple[str, Callable[[Proof], float | None], str], ...] = (
    ("times the fastest fp32 runtime", _speed("faster"), ".2f"),
    ("times plain PyTorch", _speed("faster_plain"), ".2f"),
    ("ms a batch", _speed("ms"), ".3f"),
    ("metric of the dense model", lambda proof: proof.quality.dense, ".2f"),
    ("metric of the compressed model", lambda proof: proof.quality.small, ".2f"),
    ("drop in points", lambda proof: proof.quality.drop, ".2f"),
    ("drop at most", lambda proof: proof.quality.drop_most, ".2f"),
    ("times as small", lambda proof: proof.size.smaller, ".2f"),
)
