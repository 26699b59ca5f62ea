"""Bins are never overfull and nearly full; loads are nearly equal; both agree with slow obvious references."""

import itertools

import numpy as np
import pytest

from terrazzo.data import packing
from terrazzo.errors import InputError


def text_lengths(n: int, longest: int, seed: int = 0) -> np.ndarray:
    """Log-normal lengths cut at `longest`, as text has them."""
    draws = np.random.default_rng(seed).lognormal(4.5, 1.0, n)
    return np.clip(draws, 3, longest).astype(np.int64)


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [capacity - sum(lengths[i] for i in items) for items in bins]
        fitting = [b for b in range(len(bins)) if room[b] >= lengths[item]]
        if fitting:
            bins[min(fitting, key=lambda b: room[b])].append(item)
        else:
            bins.append([item])
    return bins


def slow_balance(lengths: list[int], bins: int) -> list[int]:
    totals, assignment = [0] * bins, [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        assignment[item] = totals.index(min(totals))
        totals[assignment[item]] += lengths[item]
    return assignment


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_fills_bins_as_the_slow_one_does(seed: int) -> None:
    lengths = text_lengths(200, 300, seed)
    bins = packing.best_fit(lengths, 300)
    assert sorted(np.concatenate(bins).tolist()) == list(range(200))
    slow = slow_best_fit(lengths.tolist(), 300)
    assert sorted(int(lengths[b].sum()) for b in bins) == sorted(int(lengths[b].sum()) for b in slow)


def test_best_fit_wastes_under_one_percent() -> None:
    lengths = text_lengths(20_000, 512)
    bins = packing.best_fit(lengths, 4096)
    assert max(lengths[b].sum() for b in bins) <= 4096
    assert packing.efficiency(lengths, bins, 4096) >= 0.99


def test_best_fit_of_nothing_and_of_exact_fits() -> None:
    assert packing.best_fit(np.array([], dtype=np.int64), 8) == []
    assert [b.tolist() for b in packing.best_fit(np.array([8, 3, 5, 8]), 8)] == [[0], [3], [2, 1]]


def test_best_fit_names_the_document_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="item 1 is 9 tokens long .* bin of 8"):
        packing.best_fit(np.array([8, 9]), 8)


@pytest.mark.parametrize("bins", [1, 2, 7, 64])
def test_balance_is_longest_first_to_the_emptiest(bins: int) -> None:
    lengths = text_lengths(300, 512, seed=bins)
    assert packing.balance(lengths, bins).tolist() == slow_balance(lengths.tolist(), bins)


def test_balance_is_within_one_percent_where_serpentine_and_order_are_not() -> None:
    lengths, bins = text_lengths(8 * 8, 512), 8
    totals = packing.loads(lengths, packing.balance(lengths, bins), bins)
    assert totals.sum() == lengths.sum()
    naive = packing.imbalance(packing.loads(lengths, np.arange(len(lengths)) % bins, bins))
    serpentine = packing.imbalance(packing.loads(lengths, packing.serpentine(lengths, bins), bins))
    assert packing.imbalance(totals) <= 1.01 < 1.04 < serpentine < naive


def test_balance_by_cost_equalises_the_cost() -> None:
    lengths = np.array([8, 4, 4, 4, 4])
    assert packing.balance(lengths, 2).tolist() == [0, 1, 1, 0, 1]
    assert packing.balance(lengths, 2, cost=lengths**2).tolist() == [0, 1, 1, 1, 1]


def test_balance_keeps_graham_bound() -> None:
    for lengths in itertools.combinations_with_replacement(range(1, 6), 6):
        best = min(
            max(packing.loads(np.array(lengths), np.array(way), 2))
            for way in itertools.product((0, 1), repeat=5)
            for way in [(0, *way)]
        )
        worst = max(packing.loads(np.array(lengths), packing.balance(np.array(lengths), 2), 2))
        assert worst * 6 <= best * 7  # 4/3 - 1/(3 bins)


def test_serpentine_deals_forwards_then_backwards() -> None:
    assert packing.serpentine(np.array([1, 2, 3, 4, 5, 6, 7]), 3).tolist() == [0, 0, 1, 2, 2, 1, 0]
