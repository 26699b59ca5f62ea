"""Counter-based randomness: a number is a pure function of its key, so nothing has a state to save or to replay.

Only 64-bit integer arithmetic, which is the same on every machine. Shapes: T packed tokens, B documents.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every input bit over all output bits; the input is left as it is.

    Reference: Steele, Lea, Flood, Fast splittable pseudorandom number generators (2014), with Stafford's variant 13.
    """
    shifted = x >> np.uint64(30)
    x = np.bitwise_xor(x, shifted, out=shifted)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    scratch = x >> np.uint64(27)
    x ^= scratch
    x *= np.uint64(0x94D049BB133111EB)
    np.right_shift(x, np.uint64(31), out=scratch)
    x ^= scratch
    return x


@lru_cache(maxsize=4096)
def derive(seed: int, *parts: str | int) -> int:
    """A 64-bit key for one purpose, e.g. `derive(seed, "mask")`; other parts give an unrelated key."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in (int(seed), *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def hash64(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """uint64 hash of each element of `counters` (integers, broadcast together)."""
    state = np.full(1, key, dtype=np.uint64)
    for counter in counters:
        state = mix(state + np.atleast_1d(counter).astype(np.uint64) * np.uint64(_GOLDEN))
    return state


def hash_tokens(key: int, documents_B: np.ndarray, epoch_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """`hash64(key, document, epoch, position)` for every token of documents that lie end to end.

    Returns:
        uint64 `(T,)`.
    """
    state_B = hash64(key, documents_B, epoch_B)
    starts_B = np.cumsum(lengths_B) - lengths_B
    # The counter of token t is t - start, so the start can be taken off once a document instead of once a token.
    state_B -= starts_B.astype(np.uint64) * np.uint64(_GOLDEN)
    state_T = np.repeat(state_B, lengths_B)
    state_T += _multiples(len(state_T).bit_length())[: len(state_T)]
    return mix(state_T)


def uniform(hashes: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the upper 53 bits of each hash."""
    return (hashes >> np.uint64(11)) * 2.0**-53


def threshold(probability: float) -> np.uint64:
    """The `t` for which `hashes < t` holds with `probability` below 1, without going through floats per element."""
    assert 0 <= probability < 1, probability
    return np.uint64(int(probability * 2.0**64))


def below(hashes: np.ndarray, n: int) -> np.ndarray:
    """int64 in [0, n) from the upper 32 bits of each hash; `n` at most 2^31, for a bias under n / 2^32.

    Reference: Lemire, Fast random integer generation in an interval (2019), Section 3.
    """
    assert 0 < n <= 1 << 31, n
    return (((hashes >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a keyed permutation of [0, n) sends each of `indices`, in O(1) each and with nothing stored.

    A Feistel network permutes the cells of a rectangle, about sqrt(n) by sqrt(n) and at least n; what it sends to a
    cell beyond n goes through again until it lands inside.

    Returns:
        int64 of the shape of `indices`.

    Reference: Black, Rogaway, Ciphers with arbitrary finite domains (2002): the generalised Feistel cipher, Section 5,
    and cycle walking, Section 4.
    """
    indices = np.asarray(indices, dtype=np.int64)
    assert 1 <= n < 1 << 62, n
    assert indices.size == 0 or (indices.min() >= 0 and indices.max() < n), n
    out = _feistel(indices.ravel(), n, key)
    while (outside := np.flatnonzero(out >= n)).size:
        out[outside] = _feistel(out[outside], n, key)
    return out.reshape(indices.shape)


def _feistel(x: np.ndarray, n: int, key: int) -> np.ndarray:
    columns = math.isqrt(n - 1) + 1
    rows = -(-n // columns)
    row, column = np.divmod(x, columns)
    for i in range(0, _ROUNDS, 2):
        row = (row + below(mix(column.astype(np.uint64) + _round_key(key, i)), rows)) % rows
        column = (column + below(mix(row.astype(np.uint64) + _round_key(key, i + 1)), columns)) % columns
    return row * columns + column


@lru_cache(maxsize=4096)
def _round_key(key: int, i: int) -> np.uint64:
    return np.uint64(derive(key, "round", i))


@lru_cache(maxsize=64)
def _multiples(bits: int) -> np.ndarray:
    return np.arange(1 << bits, dtype=np.uint64) * np.uint64(_GOLDEN)
