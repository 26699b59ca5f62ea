"""Keyed hashes look random and never change; the keyed permutation is one."""

import numpy as np
import pytest

from terrazzo.data import keyed


def slow_mix(x: int) -> int:
    """The finaliser in Python's unbounded integers."""
    word = (1 << 64) - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
    return x ^ (x >> 31)


def slow_hash(key: int, *counters: int) -> int:
    for counter in counters:
        key = slow_mix((key + counter * 0x9E3779B97F4A7C15) & ((1 << 64) - 1))
    return key


def test_known_values() -> None:
    """Bit-identical everywhere: a change here breaks the resume of every run that exists."""
    assert keyed.derive(17, "mask", 3) == 0x4AF0B9F2E0602F43
    assert [hex(h) for h in keyed.hash64(17, np.arange(3), 5)] == [
        "0xec9cb08286323d6e",
        "0x79726d2a99ff5377",
        "0x86c05e2ee7e990cd",
    ]
    assert keyed.permute(np.arange(10), 10, 17).tolist() == [7, 4, 9, 8, 1, 5, 2, 3, 0, 6]


def test_hash_agrees_with_unbounded_integers() -> None:
    documents = np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64)
    expected = [slow_hash(99, int(d), 4, 1000) for d in documents]
    assert keyed.hash64(99, documents, 4, 1000).tolist() == expected


def test_hash_tokens_is_hash64_of_document_epoch_position() -> None:
    documents, epochs, lengths = np.array([7, 2**40, 7]), np.array([0, 3, 1]), np.array([5, 1, 9])
    expected = [
        slow_hash(5, int(d), int(e), p) for d, e, n in zip(documents, epochs, lengths, strict=True) for p in range(n)
    ]
    assert keyed.hash_tokens(5, documents, epochs, lengths).tolist() == expected


@pytest.mark.parametrize("vary", ["document", "epoch", "position", "seed"])
def test_neighbouring_keys_give_independent_uniforms(vary: str) -> None:
    n, i = 1 << 16, np.arange(1 << 16)
    zero = np.zeros(n, dtype=np.int64)
    if vary == "seed":
        hashes = np.array([slow_hash(keyed.derive(seed, "mask"), 1, 0, 2) for seed in range(n)], dtype=np.uint64)
    else:
        counters = {name: i if name == vary else zero for name in ("document", "epoch", "position")}
        hashes = keyed.hash64(keyed.derive(0, "mask"), *counters.values())
    u = keyed.uniform(hashes)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    for bits in (hashes >> np.uint64(56), hashes & np.uint64(255)):
        counts = np.bincount(bits.astype(np.int64), minlength=256)
        assert abs(((counts - n / 256) ** 2 / (n / 256)).sum() - 255) < 5 * np.sqrt(2 * 255)
    for lag in (1, 2, 128):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / np.sqrt(n)
    flips = np.unpackbits((hashes[:-1] ^ hashes[1:]).view(np.uint8)).mean()
    assert abs(flips - 0.5) < 5 * 0.5 / np.sqrt(64 * n)


def test_threshold_and_below_have_the_stated_frequencies() -> None:
    hashes = keyed.hash64(3, np.arange(200_000))
    assert abs((hashes < keyed.threshold(0.3)).mean() - 0.3) < 5 * np.sqrt(0.21 / 200_000)
    assert not (hashes < keyed.threshold(0.0)).any()
    draws = keyed.below(hashes, 10)
    counts = np.bincount(draws, minlength=10)
    assert len(counts) == 10 and ((counts - 20_000) ** 2 / 20_000).sum() < 9 + 5 * np.sqrt(18)


def test_permutation_is_a_bijection_for_every_small_n() -> None:
    for n in range(1, 301):
        assert np.array_equal(np.sort(keyed.permute(np.arange(n), n, key=n)), np.arange(n))


def test_permutation_of_a_big_range() -> None:
    n = 1_000_003
    whole = keyed.permute(np.arange(n), n, key=8)
    assert np.array_equal(np.sort(whole), np.arange(n))
    some = np.array([5, 999_999, 5, 0])
    assert np.array_equal(keyed.permute(some, n, key=8), whole[some])
    assert abs(np.corrcoef(np.arange(n), whole)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 5 / np.sqrt(n)
    assert (whole != keyed.permute(np.arange(n), n, key=9)).mean() > 0.999
    far = np.arange(10**12, 10**12 + 1000)
    assert len(np.unique(keyed.permute(far, 10**12 + 1000, key=8))) == 1000


def test_permutation_sends_every_index_everywhere() -> None:
    """Over many keys each of 5 indices lands on each of 5 places equally often."""
    landed = np.stack([keyed.permute(np.arange(5), 5, keyed.derive(seed, "order")) for seed in range(4000)])
    for index in range(5):
        counts = np.bincount(landed[:, index], minlength=5)
        assert ((counts - 800) ** 2 / 800).sum() < 4 + 5 * np.sqrt(8)
