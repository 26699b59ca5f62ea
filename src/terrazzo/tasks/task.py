"""What a task is: rows in, a head and a loss, predictions and metrics out.

Shapes: T packed tokens, B documents, M selected tokens, C outputs of the head, L tokens of one document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of a text, in characters of the text as the person gave it.

    Args:
        start, end: first character, and the one after the last.
        score: probability of the span, 1 for a given one.
        text: the characters themselves; may be empty in given spans.
    """

    start: int
    end: int
    label: str
    score: float = 1.0
    text: str = ""


#: Share of what is dropped in training.
Dropout = Annotated[float, Field(ge=0, lt=1)]

#: What a row says the answer is: a class, several classes, a value, a tag a word, or spans (none of them may be right).
Target = str | float | tuple[str, ...] | tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, whatever file it came from.

    Args:
        text: the text; the first of a pair; the context of a question.
        other: the second text of a pair; the question.
        target: the answer, None where the row has none: `str` a class; `float` a value; `tuple[str, ...]` several
            classes, or one tag for each of `words`; `tuple[Span, ...]` the accepted answers to a question, () where the
            context holds none.
        problem: the problem that the row belongs to, for models that solve several.
        words: first and last-plus-one character of each word, for tagging.
        where: file and line, for messages.
        id: what the row calls itself, if it does.
    """

    text: str
    other: str | None = None
    target: Target | None = None
    problem: str | None = None
    words: tuple[tuple[int, int], ...] | None = None
    where: str = ""
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, kept in its place."""

    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A document as the model reads it; one row becomes several where a long text is read in windows.

    Args:
        ids: int64 `(L,)` token ids, special tokens included.
        token_types: int64 `(L,)` segments, None for all zero.
        positions: int64 `(m,)` positions in the document whose output is wanted (taggers); None elsewhere.
        label: the answer as numbers: what `Packed.labels_B` holds for this document, or `(m,)` tags; `(1, 2)` the
            first and last place of an answer, where `positions` are those it may have; None without.
        problem: number of the problem.
        truncated: tokens of the row that no window of it holds.
        context: what `decode` needs to find its way back to characters; the task's own affair.
    """

    ids: np.ndarray
    token_types: np.ndarray | None = None
    positions: np.ndarray | None = None
    label: np.ndarray | None = None
    problem: int | None = None
    truncated: int = 0
    context: Any = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model says about one row; fields that the task does not give are None.

    Args:
        label: the likeliest class, or the answer to a question ("" where there is none).
        labels: the classes above the threshold, for models that give several.
        score: probability of `label`, or the value of a regression.
        probabilities: of every class, likeliest first.
        spans: tagged stretches, or the answer's place in the context.
        tags: one tag for each word of the row, for taggers.
        truncated: tokens of the row that were not read.
        error: why there is no answer for this row.
    """

    label: str | None = None
    labels: tuple[str, ...] | None = None
    score: float | None = None
    probabilities: Mapping[str, float] | None = None
    spans: tuple[Span, ...] | None = None
    tags: tuple[str, ...] | None = None
    truncated: int = 0
    error: str | None = None


#: A metric as a function of rows that have targets and of what was said about them.
Metric = Callable[[Sequence[Example], Sequence[Result]], float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of a set of predictions.

    Args:
        main: name of the metric that runs are compared by; the higher the better.
        values: every metric by name, accuracies and F1 between 0 and 1.
    """

    main: str
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The main metric."""
        return self.values[self.main]


class Task(Protocol):
    """A task with its answer classes: a frozen config that task.json holds, `kind` telling which.

    Everything that differs between tasks is here; training, evaluation, prediction and serving know nothing of it.
    """

    @property
    def kind(self) -> str:
        """Name in configs and on the command line."""
        ...

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """The documents that each row becomes, of at most `max_len` tokens; tokenizing many rows at once is fast.

        One that cannot be used becomes a `BadRow`: an unknown class or problem, no text, an answer out of its context.
        A row without a target encodes without a label; leave targets out to predict for rows whose classes are unknown.
        """
        ...

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights: `head(encoder, batch)` runs the encoder as far as it needs and gives outputs.

        Outputs are `(B, C)` for a pooled text, `(M, C)` for selected tokens, `(T, 2)` for spans.
        """
        ...

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Loss of a batch with labels; logs `correct` where right and wrong make sense."""
        ...

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The outputs of each document of a batch, float32 on the host."""
        ...

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The answer for a row from its documents' outputs."""
        ...

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Metrics over rows that have targets; a result with an error counts as wrong."""
        ...

    def main_metric(self) -> Metric:
        """The metric that `score` calls main, for intervals; a `metrics.SumMetric` where sums over rows tell it."""
        ...
