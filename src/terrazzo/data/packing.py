"""Putting items of known lengths into bins: as few bins as possible, or a given number of equally full ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapreplace

import numpy as np

from terrazzo.errors import InputError


def best_fit(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack items into few bins of `capacity`: best-fit decreasing.

    The longest item goes first, each into the fullest bin that still takes it. O(n log capacity); deterministic.

    Args:
        lengths: `(n,)` positive integers.

    Returns:
        One int64 index array a bin, longest item first.

    Raises:
        InputError: an item is longer than `capacity`.

    Reference: Johnson, Near-optimal bin packing algorithms (1973), best-fit decreasing.
    """
    lengths = np.asarray(lengths)
    _check(lengths)
    if lengths.size and lengths.max() > capacity:
        longest = int(lengths.argmax())
        raise InputError(
            f"item {longest} is {lengths[longest]} tokens long and does not fit a bin of {capacity}: "
            f"raise the capacity to at least {lengths[longest]}, or cut the documents shorter"
        )
    bins: list[list[int]] = []
    spaces: list[int] = []  # the distinct free spaces, ascending
    with_space: dict[int, list[int]] = {}
    order = descending(lengths)
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        at = bisect_left(spaces, length)
        if at == len(spaces):
            bin_, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[at]
            bin_ = with_space[space].pop()
            if not with_space[space]:
                del spaces[at], with_space[space]
        bins[bin_].append(item)
        space -= length
        if space in with_space:
            with_space[space].append(bin_)
        elif space:
            insort(spaces, space)
            with_space[space] = [bin_]
    return [np.array(items, dtype=np.int64) for items in bins]


def balance(lengths: np.ndarray, bins: int, cost: np.ndarray | None = None) -> np.ndarray:
    """Deal items to `bins` so that all are nearly equally full: longest first, each to the emptiest bin.

    Args:
        lengths: `(n,)` positive integers.
        cost: `(n,)` positive integers to balance instead of the lengths, e.g. FLOPs that grow with the square.

    Returns:
        int64 `(n,)` bin of each item; equal loads go to the lower bin, so that every machine deals alike.

    Reference: Graham, Bounds on multiprocessing timing anomalies (1969), LPT, within 4/3 of the best; for sequences of
    unequal length between ranks, Zeng et al., arXiv 2208.08124.
    """
    costs = np.asarray(lengths if cost is None else cost)
    _check(costs)
    assert bins >= 1, bins
    order = descending(costs)
    # A heap of load * bins + bin: plain integers compare faster than pairs, and adding cost * bins keeps the bin.
    heap = list(range(bins))
    chosen = [heapreplace(heap, heap[0] + step) for step in (costs[order].astype(np.int64) * bins).tolist()]
    assignment = np.empty(len(costs), dtype=np.int64)
    assignment[order] = np.array(chosen, dtype=np.int64) % bins
    return assignment


def serpentine(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Deal items to `bins` in equal numbers: longest first, forwards and backwards in turn.

    Returns:
        int64 `(n,)` bin of each item.

    Reference: Zeng et al., Boosting distributed training performance of the unpadded BERT model, arXiv 2208.08124,
    the exchange of inputs between ranks.
    """
    lengths = np.asarray(lengths)
    _check(lengths)
    row, column = np.divmod(np.arange(len(lengths)), bins)
    assignment = np.empty(len(lengths), dtype=np.int64)
    assignment[descending(lengths)] = np.where(row % 2 == 0, column, bins - 1 - column)
    return assignment


def loads(lengths: np.ndarray, assignment: np.ndarray, bins: int) -> np.ndarray:
    """int64 `(bins,)` total length in each bin."""
    totals = np.zeros(bins, dtype=np.int64)
    np.add.at(totals, assignment, np.asarray(lengths, dtype=np.int64))
    return totals


def imbalance(totals: np.ndarray) -> float:
    """Fullest bin over the mean bin: 1.0 is perfect, and what all bins wait for."""
    return float(np.max(totals) / np.mean(totals))


def efficiency(lengths: np.ndarray, bins: Sequence[np.ndarray], capacity: int) -> float:
    """The share of the bins' capacity that holds tokens: 1.0 is perfect."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return sum(int(lengths[items].sum()) for items in bins) / (len(bins) * capacity) if bins else 1.0


def descending(lengths: np.ndarray) -> np.ndarray:
    """Indices from the longest to the shortest; equal lengths keep their order."""
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")


def _check(lengths: np.ndarray) -> None:
    assert lengths.ndim == 1, lengths.shape
    assert np.issubdtype(lengths.dtype, np.integer), lengths.dtype
    assert lengths.size == 0 or lengths.min() > 0, "lengths must be positive"
