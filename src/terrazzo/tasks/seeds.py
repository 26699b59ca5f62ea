"""How sure a score is that several seeds gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

#: 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean of several seeds' scores, their standard deviation, and the mean's 95 % interval; None for one seed."""

    mean: float
    std: float | None
    low: float | None
    high: float | None


def spread_of(scores: Sequence[float]) -> Spread:
    """Mean, standard deviation (n - 1) and 95 % interval by Student's t; beyond 31 scores by the normal's 1.96."""
    mean = fmean(scores)
    if len(scores) < 2:
        return Spread(mean=mean, std=None, low=None, high=None)
    std = stdev(scores)
    t = _T[len(scores) - 2] if len(scores) - 2 < len(_T) else 1.96
    half = t * std / math.sqrt(len(scores))
    return Spread(mean=mean, std=std, low=mean - half, high=mean + half)
