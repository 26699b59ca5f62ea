"""How long calls take on a machine that does other things too: interleaved, repeated until two halves agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from terrazzo.config import config
from terrazzo.errors import InputError, RunError

#: Seconds since some moment.
Clock = Callable[[], float]
_MOST_REPEATS = 1000


class TooNoisy(RunError):
    """The machine does too much else for times to be told apart.

    Attributes:
        what: the call whose two halves differ most; spread: by this share of the lesser; rounds: that were measured.
    """

    def __init__(self, what: str, spread: float, tolerance: float, rounds: int) -> None:
        super().__init__(
            f"machine too noisy: {what}, measured twice in {rounds} rounds, differs by {spread:.1%}, more than "
            f"{tolerance:.1%}; let other work on this machine end and measure again"
        )
        self.what, self.spread, self.rounds = what, spread, rounds


@config
class Timing:
    """How calls are timed.

    Args:
        tolerance: share by which the two halves of a call's rounds may differ.
        statistic: of each half. The minimum leaves out what other processes add; the median keeps what always recurs.
        least_rounds, most_rounds: over all calls, until every call's halves agree.
        seconds: that one sample lasts at least; short calls are repeated within it.
    """

    tolerance: float = 0.05
    statistic: Literal["min", "median"] = "min"
    least_rounds: int = 6
    most_rounds: int = 60
    seconds: float = 0.01

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and 2 <= self.least_rounds <= self.most_rounds and self.seconds >= 0):
            raise InputError("tolerance above 0, rounds from 2 up and no fewer at most than at least, seconds from 0")


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of each call, the largest difference between the halves of one, and the rounds measured."""

    ms: dict[str, float]
    spread: float
    rounds: int


def time_calls(calls: Mapping[str, Callable[[], object]], clock: Clock, timing: Timing | None = None) -> Times:
    """The milliseconds of each call, measured in rounds that interleave them.

    Every other round counts to the other half, so that what changes slowly meets both; the order turns around from
    round to round.

    Raises:
        TooNoisy: the halves of a call still differ by more than the tolerance after the most rounds.
    """
    timing = timing or Timing()
    repeats = {name: _repeats(call, clock, timing.seconds) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(1, timing.most_rounds + 1):
        for name in calls if done % 2 else reversed(list(calls)):
            samples[name].append(_sample(calls[name], repeats[name], clock))
        spreads = {name: _spread(values, timing.statistic) for name, values in samples.items()}
        worst = max(spreads, key=spreads.__getitem__)
        if done >= timing.least_rounds and spreads[worst] <= timing.tolerance:
            ms = {name: 1e3 * _reduced(values, timing.statistic) for name, values in samples.items()}
            return Times(ms=ms, spread=spreads[worst], rounds=done)
    raise TooNoisy(worst, spreads[worst], timing.tolerance, timing.most_rounds)


def _repeats(call: Callable[[], object], clock: Clock, seconds: float) -> int:
    """Calls in one sample; the first call also allocates and compiles, so the third one says how long they take."""
    _sample(call, 2, clock)
    once = _sample(call, 1, clock)
    return min(_MOST_REPEATS, max(1, math.ceil(seconds / once))) if once > 0 else _MOST_REPEATS


def _sample(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    began = clock()
    for _ in range(repeats):
        call()
    return (clock() - began) / repeats


def _spread(values: Sequence[float], statistic: str) -> float:
    """The difference between both halves, as a share of the lesser; without end where one is empty or zero."""
    if len(values) < 2:
        return math.inf
    less, more = sorted(_reduced(values[half::2], statistic) for half in (0, 1))
    return more / less - 1 if less > 0 else math.inf


def _reduced(values: Sequence[float], statistic: str) -> float:
    return min(values) if statistic == "min" else statistics.median(values)
