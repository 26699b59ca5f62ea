"""One level for each site at least total cost within a budget of price: a multiple-choice knapsack, solved exactly.

A price is anything that adds up: milliseconds, bytes, kept weights.

Shapes: S sites, L levels of one site, U units of the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terrazzo.errors import InputError

#: Units that a budget is cut into.
BUCKETS = 10_000
#: A number for each level of each site.
Table = Sequence[Sequence[float]] | Sequence[np.ndarray]


class Unreachable(InputError):
    """No choice of levels fits the budget.

    Attributes:
        budget: what was asked.
        least: the price of the cheapest choice.
    """

    def __init__(self, budget: float, least: float) -> None:
        super().__init__(f"budget {budget:g} is out of reach: the least that any choice of levels costs is {least:g}")
        self.budget, self.least = budget, least


def choose_levels(
    costs: Table,
    prices: Table,
    budget: float,
    buckets: int = BUCKETS,
) -> list[int]:
    """The level of each site, at least total cost among those whose prices add up to no more than `budget`.

    Prices are rounded up to `budget / buckets`, so the true sum stays within the budget, and the choice is the best
    of those that fit after rounding; the cheapest choice is taken where it fits by its true price alone. Of equal costs
    the lower price wins.

    Args:
        costs: what each level of each site loses, `prices` of what it takes; the same number of levels in both.

    Raises:
        Unreachable: even the cheapest level of every site together exceeds the budget.
        ValueError: sites or levels that do not match, or a number that is not finite, or a price below 0.

    Reference: SPDY (arXiv 2201.13096), section 3.2: dynamic programming over a discretised budget.
    """
    costs_SL, prices_SL = _checked(costs, prices)
    if not budget < np.inf:
        raise ValueError(f"a budget must be finite, got {budget}")
    least = float(sum(prices_L.min() for prices_L in prices_SL))
    if least > budget:
        raise Unreachable(budget, least)
    units_SL = [_units(prices_L, budget, buckets) for prices_L in prices_SL]
    if sum(int(units_L.min()) for units_L in units_SL) > buckets:
        return [_cheapest(*site) for site in zip(costs_SL, prices_SL, strict=True)]
    best_U, tables = np.full(buckets + 1, np.inf), []
    best_U[0] = 0.0
    for costs_L, units_L in zip(costs_SL, units_SL, strict=True):
        best_U, level_U = _extended(best_U, costs_L, units_L)
        tables.append(level_U)
    return _traced(tables, units_SL, int(best_U.argmin()))


def total(values: Table, levels: Sequence[int]) -> float:
    """The sum of what the chosen levels cost or take."""
    assert len(values) == len(levels), (len(values), len(levels))
    return float(sum(values[site][level] for site, level in enumerate(levels)))


def _extended(best_U: np.ndarray, costs_L: np.ndarray, units_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least cost at every number of units with one site more, and the level of that site there."""
    extended_U, level_U = np.full(len(best_U), np.inf), np.zeros(len(best_U), dtype=np.int32)
    for level, (cost, units) in enumerate(zip(costs_L.tolist(), units_L.tolist(), strict=True)):
        if units >= len(best_U):
            continue
        with_U = best_U[: len(best_U) - units] + cost
        better_U = with_U < extended_U[units:]
        np.copyto(extended_U[units:], with_U, where=better_U)
        level_U[units:][better_U] = level
    return extended_U, level_U


def _traced(tables: Sequence[np.ndarray], units_SL: Sequence[np.ndarray], used: int) -> list[int]:
    """The levels that lead to `used` units, read from the last site back."""
    levels = []
    for level_U, units_L in zip(reversed(tables), reversed(units_SL), strict=True):
        level = int(level_U[used])
        levels.append(level)
        used -= int(units_L[level])
    assert used == 0, used
    return levels[::-1]


def _units(prices_L: np.ndarray, budget: float, buckets: int) -> np.ndarray:
    """Prices in whole units, rounded up; `buckets + 1` stands for all that exceeds the budget."""
    if budget == 0:
        return np.where(prices_L > 0, buckets + 1, 0)
    units_L = np.ceil(np.minimum(prices_L, 2 * budget) * buckets / budget)
    return np.minimum(units_L, buckets + 1).astype(np.int64)


def _cheapest(costs_L: np.ndarray, prices_L: np.ndarray) -> int:
    return int(np.lexsort((costs_L, prices_L))[0])


def _checked(costs: Table, prices: Table) -> tuple[list[np.ndarray], list[np.ndarray]]:
    costs_SL = [np.asarray(costs_L, dtype=np.float64) for costs_L in costs]
    prices_SL = [np.asarray(prices_L, dtype=np.float64) for prices_L in prices]
    if [len(costs_L) for costs_L in costs_SL] != [len(prices_L) for prices_L in prices_SL]:
        raise ValueError("costs and prices differ in their sites, or in the levels of one")
    for site, (costs_L, prices_L) in enumerate(zip(costs_SL, prices_SL, strict=True)):
        if not len(costs_L):
            raise ValueError(f"site {site} has no levels")
        if not (np.isfinite(costs_L).all() and np.isfinite(prices_L).all() and prices_L.min() >= 0):
            raise ValueError(f"site {site}: costs must be finite, prices finite and at least 0")
    return costs_SL, prices_SL
