"""The words of a row: which tokens stand for them, in which window, and the likeliest tags for them all.

Shapes: K words with a token of their own, W words, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from terrazzo.errors import InputError
from terrazzo.tasks.schemes import Chunk, chunks_of_tags, split_words, tags_of_spans
from terrazzo.tasks.task import Encoded, Example, Span
from terrazzo.tasks.texts import Frame
from terrazzo.tasks.windows import Tokens, most_context, windows


@dataclass(frozen=True)
class WordsRead:
    """The words that a document's positions stand for, and those of the row that share the token of the word before."""

    words: np.ndarray
    shared: np.ndarray


def words_of(example: Example, joined: bool = False) -> tuple[tuple[int, int], ...]:
    """First and last-plus-one character of each word, given or found by `split_words`."""
    return split_words(example.text, joined) if example.words is None else example.words


def are_joined(examples: Iterable[Example]) -> bool:
    """Whether more of the words that rows give are found with signs inside of words than without."""
    gain = 0
    for example in examples:
        given = set(example.words or ())
        gain += len(given & set(split_words(example.text, True))) - len(given & set(split_words(example.text)))
    return gain > 0


def tags_given(example: Example, joined: bool = False) -> tuple[str, ...]:
    """The target of a row as one tag a word, whichever way the row has it.

    Raises:
        InputError: not as many tags as words, or spans that overlap.
    """
    target, words = example.target, words_of(example, joined)
    assert isinstance(target, tuple), target
    spans = [span for span in target if isinstance(span, Span)]
    if example.words is None and len(spans) == len(target):
        return tags_of_spans(words, spans)
    tags = tuple(str(tag) for tag in target)
    if len(tags) != len(words):
        raise InputError(f"{len(words)} words and {len(tags)} tags: every word needs one (O where it has none)")
    return tags


def word_documents(
    words: Sequence[tuple[int, int]],
    tokens: Tokens,
    around: Frame,
    max_len: int,
    overlap: int,
    labels_W: np.ndarray | None,
) -> Iterator[Encoded]:
    """The windows of a text that some word is read in: where its first token has most context, there alone."""
    words_W2 = np.array(words, dtype=np.int64).reshape(-1, 2)
    first_W = tokens.first_within(words_W2[:, 0], words_W2[:, 1])
    shared_W = (first_W >= 0) & (np.diff(first_W, prepend=-1) == 0)
    words_K = np.flatnonzero((first_W >= 0) & ~shared_W)
    spread = windows(len(tokens), max_len - around.num_special, overlap)
    chosen_K = most_context(spread, first_W[words_K])
    for number in np.unique(chosen_K):
        start, end = spread[number].tolist()
        own = words_K[chosen_K == number]
        ids, types = around.join(tokens.ids[start:end].tolist())
        yield Encoded(
            ids=ids,
            token_types=types,
            positions=first_W[own] - start + len(around.before),
            label=None if labels_W is None else labels_W[own],
            context=WordsRead(own, np.flatnonzero(shared_W)),
        )


def word_log_p(num_words: int, documents: Sequence[Encoded], log_p: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Log-probabilities `(W, C)` of every word of a row, all minus infinity for words without a token of their own."""
    log_p_WC = np.full((num_words, classes), -np.inf)
    for document, values in zip(documents, log_p, strict=True):
        log_p_WC[document.context.words] = values
    return log_p_WC


def likeliest_chunks(
    log_p_WC: np.ndarray, shared: np.ndarray, classes: Sequence[str], follows_CC: np.ndarray
) -> list[tuple[Chunk, float]]:
    """The chunks of the likeliest valid tags, each with the probability of the least sure of its words.

    A word without a token is O; one that shares the token of the word before goes with that one.
    """
    log_p_WC = log_p_WC.copy()
    log_p_WC[np.isneginf(log_p_WC).all(1), 0] = 0
    keep = np.setdiff1d(np.arange(len(log_p_WC)), shared)
    path = viterbi(log_p_WC[keep], follows_CC)
    p_K = np.exp(log_p_WC[keep, path])
    ends = np.append(keep, len(log_p_WC))[1:]
    found = chunks_of_tags([classes[index] for index in path])
    return [
        ((label, int(keep[first]), int(ends[last - 1])), float(p_K[first:last].min())) for label, first, last in found
    ]


def viterbi(log_p_KC: np.ndarray, follows_CC: np.ndarray) -> np.ndarray:
    """int64 `(K,)`: the classes with the largest summed log-probability of which each may follow the one before.

    Class 0 stands before the first and after the last.

    Reference: Viterbi, Error bounds for convolutional codes and an asymptotically optimum decoding algorithm (1967).
    """
    best_K = log_p_KC.argmax(1)
    around = np.concatenate([[0], best_K, [0]])
    if follows_CC[around[:-1], around[1:]].all():
        return best_K
    steps_CC = np.where(follows_CC, 0, -np.inf)
    total_C = log_p_KC[0] + steps_CC[0]
    came_KC = np.zeros(log_p_KC.shape, dtype=np.int64)
    for word in range(1, len(log_p_KC)):
        reach_CC = total_C[:, None] + steps_CC
        came_KC[word] = reach_CC.argmax(0)
        total_C = reach_CC.max(0) + log_p_KC[word]
    path = [int((total_C + steps_CC[:, 0]).argmax())]
    for word in range(len(log_p_KC) - 1, 0, -1):
        path.append(int(came_KC[word, path[-1]]))
    return np.array(path[::-1])
