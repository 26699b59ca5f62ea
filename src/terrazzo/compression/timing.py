"""How long calls take on a machine that does other things too: interleaved, repeated until two halves agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from terrazzo.config import config
from terrazzo.errors import InputError, RunError

#: Seconds since some moment.
Clock = Callable[[], float]
Statistic = Literal["min", "tenth", "median"]
_MOST_REPEATS = 1000
_QUANTILES: dict[Statistic, float] = {"min": 0.0, "tenth": 0.1, "median": 0.5}


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
        statistic: of each half. The lowest tenth leaves out most of what other processes add and, unlike the minimum,
            is not set by one lucky call; the median keeps what recurs.
        least_rounds, most_rounds: over all calls, until every call's halves agree.
        seconds: of one call in one round at least; a short call is made several times, each timed alone.
    """

    tolerance: float = 0.05
    statistic: Statistic = "tenth"
    least_rounds: int = 6
    most_rounds: int = 60
    seconds: float = 0.03

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and 2 <= self.least_rounds <= self.most_rounds and self.seconds >= 0):
            raise InputError("tolerance above 0, rounds from 2 up and no fewer at most than at least, seconds from 0")


@config
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
    visits = {name: _Visits(call, clock, timing) for name, call in calls.items()}
    for done in range(1, timing.most_rounds + 1):
        for name in visits if done % 2 else reversed(list(visits)):
            visits[name].visit(done % 2)
        spreads = {name: visit.spread for name, visit in visits.items()}
        worst = max(spreads, key=spreads.__getitem__)
        if done >= timing.least_rounds and spreads[worst] <= timing.tolerance:
            ms = {name: 1e3 * visit.seconds for name, visit in visits.items()}
            return Times(ms=ms, spread=spreads[worst], rounds=done)
    raise TooNoisy(worst, spreads[worst], timing.tolerance, timing.most_rounds)


class _Visits:
    """A call and the seconds that it took, those of every other round apart."""

    def __init__(self, call: Callable[[], object], clock: Clock, timing: Timing) -> None:
        self.call, self.clock, self.quantile = call, clock, _QUANTILES[timing.statistic]
        self.halves: tuple[list[float], list[float]] = ([], [])
        self._timed(), self._timed()  # these also allocate and compile
        once = self._timed()
        self.repeats = max(1, math.ceil(min(timing.seconds / once, _MOST_REPEATS))) if once > 0 else _MOST_REPEATS

    @property
    def seconds(self) -> float:
        return self._reduced([*self.halves[0], *self.halves[1]])

    @property
    def spread(self) -> float:
        """The difference between both halves, as a share of the lesser; without end where one is empty or zero."""
        if not all(self.halves):
            return math.inf
        less, more = sorted(map(self._reduced, self.halves))
        return more / less - 1 if less > 0 else math.inf

    def visit(self, half: int) -> None:
        self.halves[half].extend(self._timed() for _ in range(self.repeats))

    def _timed(self) -> float:
        began = self.clock()
        self.call()
        return self.clock() - began

    def _reduced(self, values: Sequence[float]) -> float:
        return float(np.quantile(values, self.quantile))
