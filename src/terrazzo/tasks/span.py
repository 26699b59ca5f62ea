"""Answers to questions: the stretch of a context that answers, or none.

Shapes: T packed tokens, B documents, M tokens that may begin or end an answer, K of them in one document, N rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.answers import answer_scores
from terrazzo.tasks.heads import SpanHead
from terrazzo.tasks.losses import span_cross_entropy_sum
from terrazzo.tasks.metrics import SumMetric, answered
from terrazzo.tasks.task import BadRow, Dropout, Encoded, Example, Metric, Result, Scores, Span
from terrazzo.tasks.texts import Frame, frame
from terrazzo.tasks.windows import Tokens, log_softmax, selected_rows, tokens_of, windows


@config
class SpanTask:
    """The stretch of a context that answers a question; long contexts are read in windows.

    In every window the first token, CLS, stands for "no answer here".

    Args:
        unanswerable: contexts need not hold an answer; otherwise one is always given.
        threshold: how much the log-probability of no answer must exceed that of the best answer for none to be given.
        longest: tokens of the longest answer that is given.
        overlap: tokens that neighbouring windows of a context share, at most half of a window's part of it.
        dropout: of the tokens' vectors.
    """

    kind: Literal["span"] = "span"
    unanswerable: bool = False
    threshold: float = 0.0
    longest: int = 30
    overlap: int = 128
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise InputError(f"longest must be at least 1, got {self.longest}")
        if self.overlap < 0:
            raise InputError(f"overlap must not be negative, got {self.overlap}")

    @classmethod
    def learn(cls, examples: Sequence[Example], **options: Any) -> SpanTask:
        """The task of training rows: whether some of their contexts hold no answer.

        Raises:
            InputError: no row has an answer.
        """
        targets = [example.target for example in examples if example.target is not None]
        if not any(targets):
            raise InputError(f"none of the {len(targets)} rows has an answer in its context: nothing to learn")
        return cls(**{"unanswerable": not all(targets), **options})

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """A document for each window of a row's context, the question before it.

        Training takes the first of several answers; a window that does not hold it whole has none. A question of more
        than half of `max_len` is cut. Bad rows have no question, no context, or an answer that is not in the context.
        """
        around = frame(tokenizer, pair=True)
        if max_len < around.num_special + 2:
            raise InputError(f"max_len={max_len}: special tokens alone take {around.num_special}; raise it")
        questions = tokens_of(tokenizer, [example.other or "" for example in examples])
        contexts = tokens_of(tokenizer, [example.text for example in examples])
        rows: list[list[Encoded] | BadRow] = []
        for example, question, context in zip(examples, questions, contexts, strict=True):
            try:
                rows.append(self._encode(example, question, context, around, max_len))
            except InputError as error:
                rows.append(BadRow(where=example.where, message=str(error)))
        return rows

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights; outputs `(T, 2)`."""
        return SpanHead(config, self.dropout)

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Cross-entropy of the first and of the last token over CLS and the context, their mean; `correct`: both right.

        Raises:
            InputError: an option that only classes have.
        """
        if options.class_weights is not None or options.focal_gamma or options.label_smoothing:
            raise InputError("class_weights, focal_gamma and label_smoothing are for classes; answers are places")
        scores_T2, places_B2 = allowed_scores(outputs, batch), batch.labels_B
        assert places_B2 is not None, "the batch has no labels"
        total = span_cross_entropy_sum(scores_T2, batch.lengths, places_B2)
        top_B2 = torch.segment_reduce(scores_T2.detach(), "max", lengths=batch.cu_seqlens.diff().long(), unsafe=True)
        right_B2 = scores_T2.detach().gather(0, batch.cu_seqlens[:-1, None].long() + places_B2)
        correct = (right_B2 >= top_B2).all(1).sum()
        return Loss(sum=total, weight=len(batch.lengths), logs={"correct": correct})

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The outputs `(K, 2)` of each document at CLS and the tokens of its context."""
        assert batch.masked_M is not None, "the batch selects no tokens"
        return selected_rows(outputs.index_select(0, batch.masked_M), batch)

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The likeliest answer of all windows, `label` its text and `score` its probability; "" where there is none.

        An answer's probability is that of its first token times that of its last one in its window; no answer has that
        of CLS in the window that most speaks against it.
        """
        log_p = [log_softmax(output, axis=0) for output in outputs]
        nothing = min(float(values[0].sum()) for values in log_p)
        found = [
            best_span(values[1:, 0] + _no_space(example.text, document.context), values[1:, 1], self.longest)
            for document, values in zip(documents, log_p, strict=True)
        ]
        chosen = max(range(len(found)), key=lambda window: found[window][0])
        best, first, last = found[chosen]
        truncated = documents[0].truncated
        if best == -np.inf or (self.unanswerable and nothing - best > self.threshold):
            return Result(label="", score=float(np.exp(nothing)), spans=(), truncated=truncated)
        places: ContextRead = documents[chosen].context
        start, end = _trimmed(example.text, int(places.starts[first]), int(places.ends[last]))
        text, score = example.text[start:end], float(np.exp(best))
        span = Span(start=start, end=end, label="", score=score, text=text)
        return Result(label=text, score=score, spans=(span,), truncated=truncated)

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Exact match and F1 of words, as SQuAD has them; of several answers the best counts.

        Where some contexts hold an answer and some do not, also those of either sort alone.
        """
        examples, results = answered(examples, results)
        rows_N3, known_N = self._rows(examples, results), np.array([bool(example.target) for example in examples])
        values = {"f1": float(rows_N3[:, 0].mean()), "exact_match": float(rows_N3[:, 1].mean())}
        if known_N.any() and not known_N.all():
            values["f1_answer"], values["exact_match_answer"] = rows_N3[known_N, :2].mean(0).tolist()
            values["accuracy_no_answer"] = float(rows_N3[~known_N, 1].mean())
        return Scores(main="f1", values=values)

    def main_metric(self) -> Metric:
        """F1 of words."""
        return SumMetric(self._rows, lambda sums: sums[..., 0] / sums[..., 2])

    def _encode(
        self, example: Example, question: Tokens, context: Tokens, around: Frame, max_len: int
    ) -> list[Encoded]:
        if not len(question):
            raise InputError("there is no question" if example.other is None else "the question is empty")
        if not len(context):
            raise InputError("the context is empty")
        room = max_len - around.num_special
        asked = question.ids[: max(1, room // 2)]
        answer = None if not example.target else _answer_tokens(example, context)
        before = len(around.before) + len(asked) + len(around.between)
        documents: list[Encoded] = []
        for start, end in windows(len(context), room - len(asked), self.overlap).tolist():
            ids, types = around.join(asked.tolist(), context.ids[start:end].tolist())
            documents.append(
                Encoded(
                    ids=ids,
                    token_types=types,
                    positions=np.append(0, np.arange(before, before + end - start)),
                    label=None if example.target is None else _places(answer, start, end, before),
                    truncated=0 if documents else len(question) - len(asked),
                    context=ContextRead(context.starts[start:end], context.ends[start:end]),
                )
            )
        return documents

    def _rows(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        """`(N, 3)`: F1, exact match, 1."""
        rows = []
        for example, result in zip(examples, results, strict=True):
            assert isinstance(example.target, tuple), example.target
            answers = [span.text for span in example.target if isinstance(span, Span)]
            exact, f1 = (0.0, 0.0) if result.label is None else answer_scores(result.label, answers)
            rows.append((f1, exact, 1.0))
        return np.array(rows)


@dataclass(frozen=True)
class ContextRead:
    """First and last-plus-one character of each token of a window's part of the context."""

    starts: np.ndarray
    ends: np.ndarray


def allowed_scores(outputs_T2: Tensor, batch: Packed) -> Tensor:
    """The scores of the tokens that the batch selects, fp32; minus infinity elsewhere."""
    assert batch.masked_M is not None, "the batch selects no tokens"
    outside_T = torch.ones(len(outputs_T2), dtype=torch.bool, device=outputs_T2.device)
    return outputs_T2.float().masked_fill(outside_T.index_fill(0, batch.masked_M, False)[:, None], -torch.inf)


def best_span(first_K: np.ndarray, last_K: np.ndarray, longest: int) -> tuple[float, int, int]:
    """The largest `first_K[i] + last_K[j]` with i <= j < i + longest, and its i and j."""
    padded = np.append(last_K, np.full(longest - 1, -np.inf))
    sums_KJ = first_K[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    first, more = divmod(int(sums_KJ.argmax()), longest)
    return float(sums_KJ[first, more]), first, first + more


def _answer_tokens(example: Example, context: Tokens) -> tuple[int, int]:
    """First and last token of the first answer."""
    assert isinstance(example.target, tuple)
    span = example.target[0]
    assert isinstance(span, Span), span
    if not 0 <= span.start < span.end <= len(example.text):
        length = len(example.text)
        raise InputError(f"the answer, characters {span.start} to {span.end}, is not in the context of {length}")
    touched = np.flatnonzero((context.ends > span.start) & (context.starts < span.end))
    if not len(touched):
        raise InputError(
            f"the answer {example.text[span.start : span.end]!r:.60} has no character that the model reads"
        )
    return int(touched[0]), int(touched[-1])


def _places(answer: tuple[int, int] | None, start: int, end: int, before: int) -> np.ndarray:
    """int64 `(1, 2)` places of an answer's first and last token in the document; CLS where a window lacks some."""
    if answer is None or answer[0] < start or answer[1] >= end:
        return np.zeros((1, 2), dtype=np.int64)
    return np.array([[answer[0] - start + before, answer[1] - start + before]])


def _no_space(text: str, read: ContextRead) -> np.ndarray:
    """`(K,)`: minus infinity at tokens of white space alone, as byte-level ones may be: no answer begins there; 0."""
    return np.array([0.0 if text[a:b].strip() else -np.inf for a, b in zip(read.starts, read.ends, strict=True)])


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch without the white space that byte-level tokens hold, with the accents that composing left over."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end = max(start, end - (len(inside) - len(inside.rstrip())))
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return start, end
