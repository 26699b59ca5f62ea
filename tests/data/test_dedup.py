import numpy as np
import pytest

from terrazzo.data.dedup import DIGEST, DigestSet, NearDuplicates, digest, signature
from terrazzo.errors import InputError


def as_batch(texts):
    return np.array([digest(text) for text in texts], dtype=DIGEST)


def test_digest_sees_through_case_and_white_space_only():
    assert digest("Ein  Satz\n") == digest("ein satz")
    assert digest("ein satz") != digest("ein satz.")
    assert len(digest("")) == 16


def test_digest_set_agrees_with_a_python_set_over_many_batches():
    draw = np.random.default_rng(0)
    ours, reference = DigestSet(), set()
    for _ in range(60):
        texts = [str(number) for number in draw.integers(0, 4000, size=draw.integers(0, 200))]
        expected = [not (text in reference or reference.add(text)) for text in texts]
        assert ours.add(as_batch(texts)).tolist() == expected
    assert len(ours) == len(reference)


def test_digest_set_keeps_digests_that_end_in_zero_bytes_apart():
    ours = DigestSet()
    batch = np.array([b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"\0" * 15 + b"a"], dtype=DIGEST)
    assert ours.add(batch).all()
    assert not ours.add(batch).any()


def test_near_duplicates_are_those_above_the_threshold_and_memory_can_be_refilled():
    pytest.importorskip("datasketch")
    words = [f"w{i}" for i in range(300)]
    original = " ".join(words)
    near = " ".join(["other", *words[1:]])
    half = " ".join(words[:150] + [f"v{i}" for i in range(150)])
    signatures = [signature(text) for text in (original, near, half, near.upper())]
    finder = NearDuplicates(0.8)
    assert finder.add(signatures).tolist() == [True, False, True, False]
    refilled = NearDuplicates(0.8)
    refilled.remember(signatures[:1])
    assert refilled.add(signatures[1:]).tolist() == [False, True, False]


def test_documents_that_the_bands_propose_wrongly_are_kept():
    pytest.importorskip("datasketch")
    original = [f"w{i}" for i in range(200)]
    alike = [original[:105] + [f"{d}-{i}" for i in range(95)] for d in range(60)]
    signatures = [signature(" ".join(words)) for words in (original, *alike)]
    assert NearDuplicates(0.5).add(signatures).all()


def test_the_signature_estimates_the_jaccard_index_of_word_3_grams():
    pytest.importorskip("datasketch")
    words = [f"w{i}" for i in range(400)]
    first, second = words[:300], words[100:]
    estimate = np.mean(signature(" ".join(first)) == signature(" ".join(second)))
    exact = 198 / (298 + 298 - 198)
    assert abs(estimate - exact) < 3 * np.sqrt(exact * (1 - exact) / 128)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(InputError, match=r"--near-duplicates needs a package: pip install 'terrazzo\[data\]'"):
        NearDuplicates(0.8)
