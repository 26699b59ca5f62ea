"""What a compressed model must be: how much faster or smaller, and at most how much worse."""

from __future__ import annotations

import math
from typing import Literal

from terrazzo.config import config
from terrazzo.errors import InputError

#: How long is searched and trained.
Effort = Literal["minutes", "hours"]
#: One-sided 95 % quantile of the normal distribution.
_Z = 1.645


@config
class Goal:
    """What is asked of a compressed model; every field that is given must be reached.

    Args:
        faster: times as fast as the same model in the fastest fp32 runtime of this machine.
        smaller: times as small as the fp32 weights, on disk.
        under_ms: milliseconds that a batch may take.
        drop: points of the task's metric that may be lost (1.0: accuracy .930 becomes .920 at worst), held against the
            upper end of an interval on rows that nothing was chosen or trained by.

    Raises:
        InputError: nothing to optimise, two ways of asking for speed, or a value out of range.
    """

    faster: float | None = None
    smaller: float | None = None
    under_ms: float | None = None
    drop: float = 1.0

    def __post_init__(self) -> None:
        if self.faster is None and self.smaller is None and self.under_ms is None:
            raise InputError("nothing to optimise: give faster (4), smaller (10) or under (5ms)")
        if self.faster is not None and self.under_ms is not None:
            raise InputError(
                f"faster {self.faster:g} and under {self.under_ms:g} ms both ask for speed: give one of them"
            )
        for name in ("faster", "smaller"):
            value = getattr(self, name)
            if value is not None and not 1 < value < math.inf:
                raise InputError(f"{name} {value:g}: a factor above 1, as 4 for four times as {_AS[name]}")
        if self.under_ms is not None and not 0 < self.under_ms < math.inf:
            raise InputError(f"under {self.under_ms:g} ms: a time above 0")
        if not 0 <= self.drop <= 100:
            raise InputError(f"drop {self.drop:g}: points of the metric, from 0 to 100")

    @property
    def asks_speed(self) -> bool:
        """Whether it says how fast."""
        return self.faster is not None or self.under_ms is not None

    def __str__(self) -> str:
        asked = [
            f"{self.faster:g} times as fast" if self.faster is not None else "",
            f"under {self.under_ms:g} ms" if self.under_ms is not None else "",
            f"{self.smaller:g} times as small" if self.smaller is not None else "",
        ]
        return f"{' and '.join(filter(None, asked))}, at most {self.drop:g} point{'s' * (self.drop != 1)} lost"


_AS = {"faster": "fast", "smaller": "small"}


def rows_to_prove(drop: float, changed: float) -> int:
    """Rows that prove a drop of 0 to be below `drop` points, where a share `changed` of answers turns right or wrong.

    The difference of two accuracies on the same n rows has a standard error of at most sqrt(changed / n); the upper end
    of its one-sided 95 % interval must stay below the drop allowed.

    Raises:
        ValueError: no drop is allowed at all, which no number of rows can prove.
    """
    if drop <= 0:
        raise ValueError("a drop of 0 points cannot be proved by any number of rows")
    return math.ceil(changed * (_Z * 100 / drop) ** 2)
