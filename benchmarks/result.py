"""The JSON that every benchmark writes: rows with a floor, a goal and a measured value with its spread."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from terrazzo.provenance import provenance, write_json_atomic

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the published table.

    Args:
        id: a short stable name; rows are sorted by it (C1, C2, ... on CPU, G1, ... on GPU).
        metric: what is measured, in words.
        peer: what it is measured against, in the same run.
        floor: the least that counts as good enough.
        goal: what we want.
        value: measured; None where `status` is "not run (why)".
        low: lower end of the 95 % interval of `value`.
        high: upper end of it.
        unit: "x" for ratios, "%", "s", ...
        better: which direction is good.
        status: "measured" or "not run (why)".
        note: what a reader must know to trust the value.
    """

    id: str
    metric: str
    peer: str
    floor: float | None
    goal: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    better: Literal["higher", "lower"] = "higher"
    status: str = "measured"
    note: str = ""

    def __post_init__(self) -> None:
        if self.status != "measured" and not self.status.startswith("not run ("):
            raise ValueError(f"row {self.id}: status {self.status!r} is neither 'measured' nor 'not run (why)'")
        if (self.value is not None) != self.measured:
            raise ValueError(f"row {self.id}: value {self.value} does not go with status {self.status!r}")

    @property
    def measured(self) -> bool:
        """Whether the row holds a value."""
        return self.status == "measured"

    @property
    def verdict(self) -> str:
        """Whether the value reaches the goal or the floor; "within the spread" where its interval does not.

        Without a value the reason that it was not run.
        """
        if self.value is None:
            return self.status
        worse = self.low if self.better == "higher" else self.high
        for name, mark in (("goal", self.goal), ("floor", self.floor)):
            if mark is not None and self._reaches(self.value, mark):
                certain = worse is None or self._reaches(worse, mark)
                return f"reaches the {name}" + ("" if certain else ", within the spread")
        return "no floor set" if self.floor is None else "below the floor"

    def _reaches(self, value: float, mark: float) -> bool:
        return value >= mark if self.better == "higher" else value <= mark


def bootstrap_interval(
    numerators: Sequence[float], denominators: Sequence[float], draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """median(numerators) / median(denominators) and the ends of its 95 % percentile bootstrap interval.

    For "how many times faster" of two lists of seconds, the peer's seconds are the numerators.

    Returns:
        value, low, high.

    Reference: Efron, Bootstrap methods: another look at the jackknife (1979), the percentile interval.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    generator = np.random.default_rng(seed)
    ratios = _resampled_medians(top, draws, generator) / _resampled_medians(bottom, draws, generator)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(top) / np.median(bottom)), float(low), float(high)


def write(name: str, rows: Sequence[Row], details: dict[str, Any] | None = None, folder: Path = RESULTS) -> Path:
    """Write `folder/name.json`, the only way a result gets into the repository.

    A run that measured nothing (no GPU, say) leaves an earlier file with measured rows as it is.
    """
    path = folder / f"{name}.json"
    if path.exists() and not any(row.measured for row in rows) and any(row.measured for row in read(path)):
        print(f"{path}: kept, for this run measured nothing ({rows[0].status})")
        return path
    plain = [dataclasses.asdict(row) for row in rows]
    report = {"benchmark": name, "provenance": provenance(), "rows": plain, "details": details or {}}
    write_json_atomic(path, report)
    print(f"{path}: {sum(row.measured for row in rows)} of {len(rows)} rows measured")
    return path


def read(path: Path) -> list[Row]:
    """The rows of a results file."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def _resampled_medians(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    picks = generator.integers(0, len(values), size=(draws, len(values)))
    return np.median(values[picks], axis=1)
