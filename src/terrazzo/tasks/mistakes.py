"""The mistakes that a model was surest of: what to read first after an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from terrazzo.tasks.answers import answer_scores
from terrazzo.tasks.schemes import chunks_of_tags
from terrazzo.tasks.task import Example, Result, Span

#: Characters of a text that are kept to recognise it by.
_SHOWN = 240
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A row that was answered wrongly.

    Args:
        where: file and line. texts: of the row, a question before its context, shortened.
        right, said: the answer of the row and that of the model, in words.
        loss: what the rows are ordered by: cross-entropy of a class, distance of a value, number of wrong spans,
            confidence in a wrong answer to a question.
    """

    where: str
    texts: tuple[str, ...]
    problem: str | None = None
    right: str
    said: str
    loss: float


#: Loss (0 where the row is right), right answer and given answer.
_Judged = tuple[float, str, str]
#: Label, first character, and the one after the last.
_Place = tuple[str, int, int]


def worst_mistakes(
    kind: str, examples: Sequence[Example], results: Sequence[Result], most: int = 10
) -> tuple[Mistake, ...]:
    """The `most` wrong rows of highest loss, worst first; rows without an answer or with an error are no mistakes."""
    judged = [
        (judge(kind, example, result), example)
        for example, result in zip(examples, results, strict=True)
        if example.target is not None and result.error is None
    ]
    worst = sorted((pair for pair in judged if pair[0][0] > 0), key=lambda pair: -pair[0][0])[:most]
    return tuple(
        Mistake(
            where=example.where,
            texts=_texts(kind, example),
            problem=example.problem,
            right=_short(right),
            said=_short(said),
            loss=loss,
        )
        for (loss, right, said), example in worst
    )


def _texts(kind: str, example: Example) -> tuple[str, ...]:
    texts = (example.other, example.text) if kind == "span" else (example.text, example.other)
    return tuple(_short(text) for text in texts if text is not None)


def judge(kind: str, example: Example, result: Result) -> _Judged:
    """How wrong a result is, and both answers in words."""
    return _JUDGES.get(kind, _class)(example, result)


def _class(example: Example, result: Result) -> _Judged:
    right, probabilities = example.target, result.probabilities or {}
    if isinstance(right, tuple):
        wanted, given = {str(name) for name in right}, set(result.labels or ())
        shares = [p if name in wanted else 1 - p for name, p in probabilities.items()]
        loss = -sum(math.log(max(share, _LEAST)) for share in shares) if wanted != given else 0.0
        return loss, ", ".join(sorted(wanted)) or "none", ", ".join(sorted(given)) or "none"
    loss = 0.0 if right == result.label else -math.log(max(probabilities.get(str(right), 0.0), _LEAST))
    return loss, str(right), f"{result.label} ({result.score or 0:.0%})"


def _value(example: Example, result: Result) -> _Judged:
    assert isinstance(example.target, (int, float)) and result.score is not None
    return abs(example.target - result.score), f"{example.target:.4g}", f"{result.score:.4g}"


def span_sets(example: Example, result: Result) -> tuple[set[_Place], set[_Place]]:
    """The spans of a tagged row, those of its answer and those of the model."""
    target = example.target
    assert isinstance(target, tuple)
    if target and isinstance(target[0], str):
        return _chunks(example, [str(tag) for tag in target]), _chunks(example, result.tags or ())
    right = {(span.label, span.start, span.end) for span in target if isinstance(span, Span)}
    return right, {(span.label, span.start, span.end) for span in result.spans or ()}


def _tags(example: Example, result: Result) -> _Judged:
    right, said = span_sets(example, result)
    missed, invented = right - said, said - right
    return float(len(missed) + len(invented)), _chunk_words(example, missed), _chunk_words(example, invented)


def _chunks(example: Example, tags: Sequence[str]) -> set[_Place]:
    words = example.words or ()
    return {(label, words[first][0], words[last - 1][1]) for label, first, last in chunks_of_tags(tags)}


def _chunk_words(example: Example, chunks: set[_Place]) -> str:
    ordered = sorted(chunks, key=lambda chunk: chunk[1:])
    return "; ".join(f"{label}: {example.text[start:end]}" for label, start, end in ordered) or "nothing more"


def _answer(example: Example, result: Result) -> _Judged:
    assert isinstance(example.target, tuple)
    answers = [span.text for span in example.target if isinstance(span, Span)]
    _, f1 = answer_scores(result.label or "", answers)
    return (
        (1 - f1) * (result.score or 0.0),
        " | ".join(dict.fromkeys(answers)) or "no answer",
        result.label or "no answer",
    )


_JUDGES: dict[str, Callable[[Example, Result], _Judged]] = {"regression": _value, "tag": _tags, "span": _answer}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
