"""The likeliest valid tags are those that trying all of them finds."""

import itertools

import numpy as np
import pytest

from terrazzo.tasks import words
from terrazzo.tasks.schemes import chunks_of_tags, may_follow, tags_of_chunks
from terrazzo.tasks.windows import log_softmax

CLASSES = {"IOB2": ["O", "B-A", "I-A", "B-B", "I-B"], "BIOES": ["O", "B-A", "I-A", "E-A", "S-A"]}


@pytest.mark.parametrize("coding", ["IOB2", "BIOES"])
@pytest.mark.parametrize("joined", [False, True])
def test_viterbi_is_the_best_of_all_valid_paths(coding: str, joined: bool) -> None:
    classes = CLASSES[coding]
    valid = []
    for path in itertools.product(range(5), repeat=4):
        tags = [classes[index] for index in path]
        chunks = chunks_of_tags(tags)
        neighbours = any(a[0] == b[0] and a[2] == b[1] for a, b in itertools.pairwise(chunks))
        if list(tags_of_chunks(chunks, 4, coding)) == tags and not (joined and neighbours):
            valid.append(path)
    follows = np.array([[may_follow(a, b, coding, joined=joined) for b in classes] for a in classes])
    draw = np.random.default_rng(0)
    for _ in range(100):
        log_p = log_softmax(draw.normal(size=(4, 5)) * 2)
        best = max(valid, key=lambda path: sum(log_p[word, index] for word, index in enumerate(path)))
        assert words.viterbi(log_p, follows).tolist() == list(best)


def test_words_without_a_token_are_outside_and_those_that_share_one_go_along() -> None:
    follows = np.array([[may_follow(a, b, "IOB2") for b in CLASSES["IOB2"]] for a in CLASSES["IOB2"]])
    log_p = np.full((7, 5), -np.inf)
    sure = np.log(np.full((5, 5), 0.025) + 0.875 * np.eye(5))
    log_p[[0, 1, 3, 4, 6]] = sure[[1, 2, 1, 0, 1]]  # word 2 gives no token, word 5 shares that of 4
    chunks = words.likeliest_chunks(log_p, np.array([5]), CLASSES["IOB2"], follows)
    assert [chunk for chunk, _ in chunks] == [("A", 0, 2), ("A", 3, 4), ("A", 6, 7)]
    log_p[4] = sure[2]
    chunks = words.likeliest_chunks(log_p, np.array([5]), CLASSES["IOB2"], follows)
    assert [chunk for chunk, _ in chunks] == [("A", 0, 2), ("A", 3, 6), ("A", 6, 7)]
    assert all(score == pytest.approx(0.9) for _, score in chunks)


def test_a_chunk_is_as_sure_as_its_least_sure_word() -> None:
    follows = np.array([[may_follow(a, b, "IOB2") for b in CLASSES["IOB2"]] for a in CLASSES["IOB2"]])
    p = np.array([[0.1, 0.9, 0, 0, 0], [0.4, 0, 0.6, 0, 0], [0.2, 0, 0.8, 0, 0]]) + 1e-9
    ((chunk, score),) = words.likeliest_chunks(np.log(p), np.array([], dtype=int), CLASSES["IOB2"], follows)
    assert chunk == ("A", 0, 3) and score == pytest.approx(0.6)
