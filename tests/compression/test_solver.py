"""The chosen levels are those of trying everything, and never cost more than there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from terrazzo.compression.solver import Unreachable, choose_levels, total


def exhaustive(costs, prices, budget):
    """The least cost of all choices within the budget, each tried."""
    choices = itertools.product(*(range(len(site)) for site in costs))
    return min(total(costs, choice) for choice in choices if total(prices, choice) <= budget)


def drawn(seed, levels=(5, 5, 5, 5)):
    draw = np.random.default_rng(seed)
    return [draw.exponential(1, n) for n in levels], [draw.exponential(1, n) for n in levels]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_whole_prices_give_what_trying_all_gives(share) -> None:
    for seed in range(12):
        costs, prices = drawn(seed)
        prices = [np.floor(20 * site) for site in prices]
        low, high = (sum(pick(site) for site in prices) for pick in (np.min, np.max))
        budget = round(low + share * (high - low))
        levels = choose_levels(costs, prices, budget, buckets=max(budget, 1))
        assert total(prices, levels) <= budget
        assert total(costs, levels) == pytest.approx(exhaustive(costs, prices, budget), rel=1e-12)


def test_real_prices_give_it_to_the_precision_of_a_bucket() -> None:
    for seed in range(40):
        costs, prices = drawn(seed, levels=(5, 3, 6, 4))
        budget = 1.3 * sum(site.min() for site in prices)
        levels = choose_levels(costs, prices, budget, buckets=1000)
        assert total(prices, levels) <= budget
        rounding = len(costs) / 1000
        assert total(costs, levels) <= exhaustive(costs, prices, budget * (1 - rounding)) + 1e-12
        assert total(costs, levels) >= exhaustive(costs, prices, budget) - 1e-12


def test_the_budget_holds_with_few_buckets_and_many_sites() -> None:
    for seed in range(20):
        costs, prices = drawn(seed, levels=(8,) * 24)
        budget = 1.7 * sum(site.min() for site in prices)
        assert total(prices, choose_levels(costs, prices, budget, buckets=97)) <= budget


def test_equal_costs_take_the_lower_price() -> None:
    assert choose_levels([[1, 1], [2, 2]], [[3, 2], [0, 1]], 10) == [1, 0]


def test_what_no_choice_reaches_is_refused_with_the_least_price() -> None:
    with pytest.raises(Unreachable, match="the least .* is 3.5") as error:
        choose_levels([[0, 1], [0, 1]], [[9, 1.5], [9, 2]], 3)
    assert (error.value.least, error.value.budget) == (3.5, 3)


def test_the_cheapest_is_found_where_rounding_alone_forbids_it() -> None:
    prices = [[1.01, 5.0]] * 3
    assert choose_levels([[1, 0]] * 3, prices, 3.05, buckets=10) == [0, 0, 0]


def test_a_budget_of_nothing_buys_what_is_free() -> None:
    assert choose_levels([[0, 3, 2]], [[1, 0, 0]], 0) == [2]


@pytest.mark.parametrize(
    ("costs", "prices"), [([[1]], [[1, 2]]), ([[np.nan]], [[1]]), ([[1]], [[-1]]), ([[]], [[]]), ([[1]], [[1], [1]])]
)
def test_what_is_no_problem_is_refused(costs, prices) -> None:
    with pytest.raises(ValueError):
        choose_levels(costs, prices, 5)
