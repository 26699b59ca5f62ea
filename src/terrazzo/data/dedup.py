"""Duplicates: exact ones by a 128-bit digest, near ones by MinHash. Both stream, and the first of its kind is kept."""

from __future__ import annotations

import hashlib
import importlib
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from terrazzo.errors import InputError

DIGEST = np.dtype("S16")
NUM_PERMUTATIONS = 128
SHINGLE = 3


def digest(text: str) -> bytes:
    """16 bytes that name a document up to case and white space."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


class DigestSet:
    """A set of digests at 16 bytes each (32 while it merges), filled batch by batch.

    Sorted runs of falling size are merged when two come near in size, so a digest is moved O(log n) times.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add a batch (dtype `DIGEST`); bool mask of those that were new, the first of equals in the batch."""
        unique, first = np.unique(digests, return_index=True)
        fresh = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            fresh &= run[at] != unique
        new = np.zeros(len(digests), dtype=bool)
        new[first[fresh]] = True
        self._insert(unique[fresh])
        return new

    def _insert(self, run: np.ndarray) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            # A stable sort of two sorted halves is a merge.
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def signature(text: str) -> np.ndarray:
    """MinHash signature of the word 3-grams of a document, uint32 or uint64 `(128,)`.

    Raises:
        InputError: datasketch is not installed.

    Reference: Broder, On the resemblance and containment of documents, 1997.
    """
    words = text.casefold().split()
    grams = {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}
    sketch = _empty_sketch().copy()
    sketch.update_batch(grams)
    return np.asarray(sketch.hashvalues)


class NearDuplicates:
    """Finds documents whose word 3-grams overlap with an earlier one's by a Jaccard index of at least `threshold`.

    Banded lookup proposes earlier documents, their whole signatures decide. Keeps about 6 KB a document in memory.

    Raises:
        InputError: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._index = _datasketch().MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
        self._kept: list[np.ndarray] = []

    def add(self, signatures: Sequence[np.ndarray]) -> np.ndarray:
        """Bool mask of the documents that resemble no earlier one; only those are remembered."""
        return np.asarray([self._add(values) for values in signatures], dtype=bool)

    def remember(self, signatures: Iterable[np.ndarray]) -> None:
        """Take in documents that were judged before."""
        for values in signatures:
            self._insert(_from_values(values))

    def _add(self, values: np.ndarray) -> bool:
        sketch = _from_values(values)
        if any(np.mean(self._kept[key] == values) >= self.threshold for key in self._index.query(sketch)):
            return False
        self._insert(sketch)
        return True

    def _insert(self, sketch: Any) -> None:
        self._index.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append(sketch.hashvalues)


def _from_values(values: np.ndarray) -> Any:
    sketch = _empty_sketch().copy()
    sketch.hashvalues = values
    return sketch


@cache
def _empty_sketch() -> Any:
    return _datasketch().MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)


def _datasketch() -> Any:
    try:
        return importlib.import_module("datasketch")
    except ModuleNotFoundError:
        raise InputError("--near-duplicates needs a package: pip install 'terrazzo[data]'") from None
