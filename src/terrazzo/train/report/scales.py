"""Scales, round ticks, smoothing and thinning: what a chart computes before it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terrazzo.train.units import prefix_of

_BUCKETS = 400
_MANTISSAS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_TIMES = (*(1, 2, 5, 10, 15, 30), *(m * _MINUTE for m in (1, 2, 5, 10, 15, 30)))
_TIMES += (*(h * _HOUR for h in (1, 2, 3, 6, 12)), *(d * _DAY for d in (1, 2, 5, 10, 20)))


@dataclass(frozen=True)
class Scale:
    """Maps numbers of [low, high] to [0, 1], straight or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        values = np.asarray(values, dtype=np.float64)
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round numbers inside the scale."""
        wide = self.log and self.high / self.low > 3
        return _log_ticks(self.low, self.high) if wide else nice_ticks(self.low, self.high)


def labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as text with as many decimals as the finest needs; large ones with a prefix, tiny ones with an exponent."""
    largest = max((abs(t) for t in ticks), default=0.0)
    if largest >= 10_000:
        size, prefix = prefix_of(largest)
        return [text if text == "0" else text + prefix for text in labels([t / size for t in ticks])]
    if 0 < largest < 0.001:
        return [f"{t:g}" for t in ticks]
    decimals = next((d for d in range(9) if all(abs(round(t, d) - t) < 1e-9 * largest for t in ticks)), 9)
    return [f"{t:,.{decimals}f}" if t else "0" for t in ticks]


def smooth(values: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Centred running mean over `share` of the values on each side, without lag; NaN is passed over.

    The window shrinks towards the start, where a loss is steep, and becomes one-sided towards the end.

    Args:
        values: float64 [n].
    """
    half = max(round(share * len(values)), 2 if len(values) > 20 else 0)
    sums = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(values), values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    places = np.arange(len(values))
    before = np.minimum(half, places)
    first, last = places - before, np.minimum(places + before + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / np.where(counts[last] > counts[first], counts[last] - counts[first], np.nan)


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """At most about `wanted` multiples of 1, 2, 2.5 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in _MANTISSAS if m * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 3, 4, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 200 else (1,)
    return [t for p in powers for f in factors if low * 0.999 <= (t := f * 10.0**p) <= high * 1.001]


def time_ticks(low: float, high: float) -> list[float]:
    """Seconds in [low, high] that a clock would show: whole 15 s, 5 m, 2 h, ..."""
    step = next((t for t in _TIMES if (high - low) / t <= 6), None)
    if step is None or high - low < 3:
        return nice_ticks(low, high)
    return [float(i * step) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def thin(x: np.ndarray, y: np.ndarray, keep_peaks: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most two points of each of `_BUCKETS` runs: the lowest and highest with `keep_peaks`, else the middle one."""
    if len(x) <= 2 * _BUCKETS:
        return x, y
    bounds = np.linspace(0, len(x), _BUCKETS + 1).astype(int)
    kept: list[int] = []
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        part = y[a:b]
        if not np.isfinite(part).all():
            kept += range(a, b) if b - a < 8 else [a, int(a + np.flatnonzero(~np.isfinite(part))[0]), b - 1]
        elif keep_peaks:
            kept += sorted({a + int(part.argmin()), a + int(part.argmax())})
        else:
            kept.append((a + b) // 2)
    kept = sorted({0, *kept, len(x) - 1})
    return x[kept], y[kept]
