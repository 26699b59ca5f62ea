"""Counter-based randomness: a number is a pure function of its key, so nothing has a state to save or to replay.

Only 64-bit integer arithmetic, which is the same on every machine. Shapes: T packed tokens, B documents.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every input bit over all output bits; the input is left as it is.

    Reference: Steele, Lea, Flood, Fast splittable pseudorandom number generators (2014), with Stafford's variant 13.
    """
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
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
    return mix(np.repeat(state_B, lengths_B) + _multiples(int(lengths_B.sum())))


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

    A Feistel network permutes the next power of two; what falls outside [0, n) is sent through again until it lands
    inside, which takes under two passes on average.

    Returns:
        int64 of the shape of `indices`.

    Reference: Black, Rogaway, Ciphers with arbitrary finite domains (2002), Section 4 (cycle walking).
    """
    indices = np.asarray(indices)
    assert n >= 1 and (indices.size == 0 or (indices.min() >= 0 and indices.max() < n)), n
    bits = (n - 1).bit_length()
    out = _feistel(indices.astype(np.uint64).ravel(), bits, key)
    while (outside := np.flatnonzero(out >= np.uint64(n))).size:
        out[outside] = _feistel(out[outside], bits, key)
    return out.astype(np.int64).reshape(indices.shape)


def _feistel(x: np.ndarray, bits: int, key: int) -> np.ndarray:
    high_bits, low_bits = bits // 2, bits - bits // 2
    high, low = x >> np.uint64(low_bits), x & np.uint64((1 << low_bits) - 1)
    for i in range(0, _ROUNDS, 2):
        high = high ^ (mix(low + _round_key(key, i)) & np.uint64((1 << high_bits) - 1))
        low = low ^ (mix(high + _round_key(key, i + 1)) & np.uint64((1 << low_bits) - 1))
    return (high << np.uint64(low_bits)) | low


@lru_cache(maxsize=4096)
def _round_key(key: int, i: int) -> np.uint64:
    return np.uint64(derive(key, "round", i))


def _multiples(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN)
