"""Tags for the words of a text: named entities and the like, or one class a word.

Shapes: M words of a batch, W words of a row, N rows, C classes, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.heads import TokenHead
from terrazzo.tasks.losses import class_weights, cross_entropy_sum, weights_like
from terrazzo.tasks.metrics import SumMetric, answered
from terrazzo.tasks.schemes import (
    Coding,
    Scheme,
    chunks_of_tags,
    detect_scheme,
    has_form,
    may_follow,
    tags_of_chunks,
)
from terrazzo.tasks.task import BadRow, Dropout, Encoded, Example, Metric, Result, Scores, Span
from terrazzo.tasks.texts import Frame, frame
from terrazzo.tasks.windows import Tokens, log_softmax, selected_rows, tokens_of
from terrazzo.tasks.words import are_joined, likeliest_chunks, tags_given, word_documents, word_log_p, words_of


@config
class TagTask:
    """A tag for every word: chunks of words with a label, or a class a word where the scheme is plain.

    Rows may be written in any scheme; inside, and in results, chunks are written in IOB2. A model is taught `coding`.

    Args:
        labels: what chunks are called; the tags themselves where the scheme is plain.
        scheme: of the training rows. IO joins neighbours of one label, so predictions for it never part them.
        coding: the tags that the outputs stand for; `classes` are their names.
        joined: signs do not end words of texts that come without words (see `split_words`); learned from rows that come
            with them.
        counts: training words of each of `classes`, which balanced weights need.
        overlap: tokens that neighbouring windows of a long text share, at most half of a window.
        dropout: of the tokens' vectors.
    """

    kind: Literal["tag"] = "tag"
    labels: tuple[str, ...]
    scheme: Scheme = "IOB2"
    coding: Coding = "IOB2"
    joined: bool = False
    counts: tuple[int, ...] = ()
    overlap: int = 64
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels {self.labels!r}: at least one, and each once")
        if self.counts and len(self.counts) != len(self.classes):
            raise InputError(f"counts: {len(self.counts)} numbers for {len(self.classes)} classes")
        if self.overlap < 0:
            raise InputError(f"overlap must not be negative, got {self.overlap}")

    @classmethod
    def learn(cls, examples: Sequence[Example], **options: Any) -> TagTask:
        """The task of training rows: their scheme, and their labels by their letters.

        Raises:
            InputError: tags of no scheme or of two, spans that overlap, or no label at all.
        """
        joined = options.pop("joined", are_joined(examples))
        rows = [_tags_at(example, joined) for example in examples if example.target is not None]
        scheme = detect_scheme(rows)
        names = {tag if scheme == "plain" else tag[2:] for tags in rows for tag in tags}
        labels = options.pop("labels", None) or sorted(names - {""})
        task = cls(labels=tuple(labels), **{"scheme": scheme, "joined": joined, **options})
        counts = Counter(tag for tags in rows for tag in task.taught(tags))
        return replace(task, counts=tuple(counts[name] for name in task.classes))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs: O and, for every label, its tags; the labels where the scheme is plain."""
        if self.scheme == "plain":
            return self.labels
        prefixes = "BI" if self.coding == "IOB2" else "BIES"
        return ("O", *(f"{prefix}-{label}" for label in self.labels for prefix in prefixes))

    def taught(self, tags: Sequence[str]) -> tuple[str, ...]:
        """Tags of any scheme as the model is taught them.

        Raises:
            InputError: a label that is not one of the task's.
        """
        plain = self.scheme == "plain"
        for tag in tags:
            if not plain and not has_form(tag):
                raise InputError(f"tag {tag!r} is neither O nor B-, I-, E-, S-, L- or U-LABEL")
            label = tag if plain else tag[2:]
            if label not in self.labels and (plain or tag != "O"):
                raise InputError(f"tag {tag!r}: the task has no label {label!r}: {nearest(label, self.labels)}")
        return tuple(tags) if plain else tags_of_chunks(chunks_of_tags(tags), len(tags), self.coding)

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """A document for each window of a row; bad rows have no text, or tags that do not fit their words or the task.

        A word is judged by its first token, in the window where that has most context, there alone. A row whose
        characters give no token has no document.
        """
        around = frame(tokenizer, pair=False)
        if max_len <= around.num_special:
            raise InputError(f"max_len={max_len}: special tokens alone take {around.num_special}; raise it")
        rows: list[list[Encoded] | BadRow] = []
        for example, tokens in zip(examples, tokens_of(tokenizer, [e.text for e in examples]), strict=True):
            try:
                rows.append(self._encode(example, tokens, around, max_len))
            except InputError as error:
                rows.append(BadRow(where=example.where, message=str(error)))
        return rows

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights; outputs `(M, C)`."""
        return TokenHead(config, len(self.classes), self.dropout)

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Cross-entropy over words, which are what the weight counts. Logs `correct`."""
        assert batch.labels_M is not None, "the batch has no labels"
        weights = class_weights(options.class_weights, self.classes, self.counts or (1,) * len(self.classes))
        weights_C = weights_like(outputs, weights)
        total = cross_entropy_sum(outputs, batch.labels_M, weights_C, options.focal_gamma, options.label_smoothing)
        correct = (outputs.argmax(1) == batch.labels_M).sum()
        return Loss(sum=total, weight=len(batch.labels_M), logs={"correct": correct})

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The outputs of each document, one line for each of its words."""
        return selected_rows(outputs, batch)

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The likeliest valid tags of the whole row, and its spans, each as sure as the least sure of its words.

        A word without a token is O; one whose token began with the word before goes with that one.
        """
        words = words_of(example, self.joined)
        log_p_WC = word_log_p(len(words), documents, [log_softmax(output) for output in outputs], len(self.classes))
        shared = documents[0].context.shared if documents else np.array([], dtype=np.int64)
        if self.scheme == "plain":
            return Result(tags=self._plain(log_p_WC, shared))
        chunks = likeliest_chunks(log_p_WC, shared, self.classes, self._follows)
        spans = (_span(example.text, words[a][0], words[b - 1][1], label, score) for (label, a, b), score in chunks)
        return Result(tags=tags_of_chunks([chunk for chunk, _ in chunks], len(words)), spans=tuple(spans))

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Precision, recall and F1 of chunks, in all and by label, and the accuracy of words.

        A chunk is right if its label, its first and its last word are. Tags are read as conlleval and the default mode
        of seqeval read them; for valid tags, which predictions always are, its strict mode says the same.
        """
        examples, results = answered(examples, results)
        sums = self._count(examples, results).sum(0)
        values = {"accuracy": float(_accuracy(sums))}
        if self.scheme == "plain":
            return Scores(main="accuracy", values=values)
        hits, right, said = sums[:-2].reshape(3, -1)
        values |= {"f1": float(_f1(sums)), "precision": _share(hits, said), "recall": _share(hits, right)}
        for place, label in enumerate(self.labels):
            values[f"f1_{label}"] = _share(2 * hits[place], right[place] + said[place])
        return Scores(main="f1", values=values)

    def main_metric(self) -> Metric:
        """F1 of chunks, or accuracy where the scheme is plain."""
        return SumMetric(self._count, _accuracy if self.scheme == "plain" else _f1)

    @cached_property
    def _follows(self) -> np.ndarray:
        """bool `(C, C)`: whether the second tag may follow the first."""
        return np.array(
            [[may_follow(a, b, self.coding, joined=self.scheme == "IO") for b in self.classes] for a in self.classes]
        )

    def _encode(self, example: Example, tokens: Tokens, around: Frame, max_len: int) -> list[Encoded]:
        if example.other is not None:
            raise InputError("two texts where the task reads one: give text alone")
        if not example.text.strip():
            raise InputError("the text is empty")
        words = words_of(example, self.joined)
        return list(word_documents(words, tokens, around, max_len, self.overlap, self._tags(example)))

    def _tags(self, example: Example) -> np.ndarray | None:
        if example.target is None:
            return None
        place = {name: index for index, name in enumerate(self.classes)}
        return np.array([place[tag] for tag in self.taught(tags_given(example, self.joined))], dtype=np.int64)

    def _plain(self, log_p_WC: np.ndarray, shared: np.ndarray) -> tuple[str, ...]:
        best = log_p_WC.argmax(1)
        best[np.isneginf(log_p_WC).all(1)] = np.argmax(self.counts or (1,))
        for word in shared:
            best[word] = best[word - 1]
        return tuple(self.classes[index] for index in best)

    def _count(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        """`(N, 3 (L + 1) + 2)`: hits, answers and predictions of each label and of unknown ones; right words, words."""
        counts_NX = np.zeros((len(examples), 3 * (len(self.labels) + 1) + 2))
        for counts_X, example, result in zip(counts_NX, examples, results, strict=True):
            right = tags_given(example, self.joined)
            said = () if result.tags is None else result.tags
            counts_X[-1] = len(right)
            if self.scheme == "plain":
                counts_X[-2] = sum(a == b for a, b in zip(right, said, strict=False))
                continue
            sets = set(chunks_of_tags(right)), set(chunks_of_tags(said))
            written = [tags_of_chunks(chunks, len(right)) for chunks in sets] if said else [(), ()]
            counts_X[-2] = sum(a == b for a, b in zip(*written, strict=True))
            for part, chunks in zip(counts_X[:-2].reshape(3, -1), (sets[0] & sets[1], *sets), strict=True):
                np.add.at(part, [self._place(label) for label, _, _ in chunks], 1)
        return counts_NX

    def _place(self, label: str) -> int:
        return self.labels.index(label) if label in self.labels else len(self.labels)


def _tags_at(example: Example, joined: bool) -> tuple[str, ...]:
    try:
        return tags_given(example, joined)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from None


def _span(text: str, start: int, end: int, label: str, score: float) -> Span:
    return Span(start=start, end=end, label=label, score=score, text=text[start:end])


def _f1(sums: np.ndarray) -> np.ndarray:
    hits, right, said = (part.sum(-1) for part in np.split(sums[..., :-2], 3, axis=-1))
    return np.divide(2 * hits, right + said, out=np.zeros_like(hits), where=right + said > 0)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[..., -2], sums[..., -1], out=np.zeros_like(sums[..., -1]), where=sums[..., -1] > 0)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
