"""Evaluation: how good a task model is on labelled rows, how sure that is, and where it fails.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import finite, provenance, write_json_atomic
from terrazzo.tasks.metrics import answered, bootstrap, confusion
from terrazzo.tasks.mistakes import Mistake, span_sets, worst_mistakes
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.task import BadRow, Example, Result, Target, Task

#: Bins of the calibration error, the number of the paper.
CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Which class was taken for which.

    Args:
        classes: most frequent answer first; counts: a row for each answer, a column for each prediction.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def pairs(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The commonest mistakes: answer, prediction, rows."""
        found = [
            (right, said, count)
            for right, row in zip(self.classes, self.counts, strict=True)
            for said, count in zip(self.classes, row, strict=True)
            if right != said and count
        ]
        return sorted(found, key=lambda pair: -pair[2])[:most]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out of an evaluation.

    Args:
        kind: of the task. main: name of the metric that counts.
        value, low, high: it, with its 95 % bootstrap interval over rows.
        scores: every metric by name.
        rows: rows with answers, on which the metrics are. without_answer: rows left out because they have none.
        bad: rows that could not be read or answered; those that have an answer count as wrong.
        truncated: rows of which tokens were not read.
        unknown_labels: answers that the model does not know, with their number of rows.
        confusion: for one class a row.
        groups: metrics of parts: of each class, of each type of span, of questions with and without an answer, of each
            problem.
        calibration_error: mean distance between confidence and accuracy, for one class a row.
        worst: the mistakes that the model was surest of.
        fingerprint: of the rows.
    """

    kind: str
    main: str
    value: float
    low: float
    high: float
    scores: Mapping[str, float]
    rows: int
    without_answer: int = 0
    bad: tuple[BadRow, ...] = ()
    truncated: int = 0
    unknown_labels: Mapping[str, int] = field(default_factory=dict)
    confusion: Confusion | None = None
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration_error: float | None = None
    worst: tuple[Mistake, ...] = ()
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; a number that does not exist is null."""
        values: dict[str, Any] = finite(asdict(self))
        return values


def evaluate_model(
    predictor: Predictor,
    examples: Sequence[Example | BadRow],
    batch_tokens: int | None = None,
    worst: int = 10,
    samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Predict labelled rows and compare.

    Args:
        worst: how many mistakes to show.
        samples, seed: resamples of the bootstrap.

    Raises:
        InputError: no row has an answer.
    """
    return evaluation(predictor.task, examples, predictor.predict(examples, batch_tokens), worst, samples, seed)


def evaluation(
    task: Task,
    rows: Sequence[Example | BadRow],
    results: Sequence[Result],
    worst: int = 10,
    samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The comparison alone: `results` are what a model said about `rows`, one each."""
    pairs = [(row, result) for row, result in zip(rows, results, strict=True) if isinstance(row, Example)]
    examples, said = [row for row, _ in pairs], [result for _, result in pairs]
    unread = [row for row in rows if isinstance(row, BadRow)]
    if unread and not examples:
        raise InputError(f"{unread[0].where}: {unread[0].message} (none of the {len(unread):,} rows can be used)")
    refused, without = _refused(examples, said), sum(row.target is None for row in examples)
    examples, said = answered(examples, said)
    interval = bootstrap(task.main_metric(), examples, said, samples, seed)
    scores = task.score(examples, said)
    one_class = [
        (str(row.target), result) for row, result in zip(examples, said, strict=True) if isinstance(row.target, str)
    ]
    return Evaluation(
        kind=task.kind,
        main=scores.main,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        scores=scores.values,
        rows=len(examples),
        without_answer=without,
        bad=tuple(unread + refused),
        truncated=sum(result.truncated > 0 for result in said),
        unknown_labels=unknown_labels(
            [(name, result) for row, result in zip(examples, said, strict=True) for name in _class_names(row.target)]
        ),
        confusion=confusion_of(one_class) if one_class else None,
        groups=groups(task, examples, said),
        calibration_error=calibration_error(one_class) if one_class else None,
        worst=worst_mistakes(task.kind, examples, said, worst),
        fingerprint=fingerprint(examples),
    )


def _refused(examples: Sequence[Example], results: Sequence[Result]) -> list[BadRow]:
    return [
        BadRow(where=row.where, message=result.error.removeprefix(f"{row.where}: "))
        for row, result in zip(examples, results, strict=True)
        if result.error is not None
    ]


def headline(
    scores: Mapping[str, float], main: str, groups: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, float]]:
    """The metrics to show beside the main one: those that no table of parts repeats."""
    repeated = {f"{name}{sign}{part}" for part in groups for name in ("accuracy", "f1") for sign in "/_"}
    return [(name, value) for name, value in scores.items() if name != main and name not in repeated]


def write_evaluation(path: str | Path, result: Evaluation, **more: Any) -> None:
    """Write an evaluation with its provenance as JSON; `more` are fields such as the model's folder and the data's."""
    write_json_atomic(path, {"format": "terrazzo-evaluation-1", **more, **result.to_dict(), "provenance": provenance()})


def unknown_labels(rows: Sequence[tuple[str, Result]]) -> dict[str, int]:
    """Answers that the model has no class for, commonest first, with their number of rows."""
    unknown = (right for right, result in rows if result.probabilities and right not in result.probabilities)
    return dict(Counter(unknown).most_common())


def confusion_of(rows: Sequence[tuple[str, Result]]) -> Confusion:
    """The table of answers and predictions, the commonest class first; rows with an error are left out."""
    answered_rows = [(right, result.label or "") for right, result in rows if result.error is None]
    right, said = [right for right, _ in answered_rows], [label for _, label in answered_rows]
    frequency = Counter(right)
    frequency.update({label: 0 for label in said})
    classes = [name for name, _ in frequency.most_common()]
    table = confusion(right, said, classes)
    return Confusion(classes=tuple(classes), counts=tuple(tuple(row) for row in table.tolist()))


def calibration_error(rows: Sequence[tuple[str, Result]], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin of confidence, weighed by its rows.

    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), Equation 3.
    """
    scored = [(result.score, result.label == right) for right, result in rows if result.score is not None]
    if not scored:
        return math.nan
    confidence_N, right_N = np.array(scored, dtype=np.float64).T
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_N, right_N - confidence_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(scored))


def groups(task: Task, examples: Sequence[Example], results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Metrics of the parts of the rows that say more than the whole does."""
    if task.kind == "tag":
        return _types(examples, results)
    if task.kind == "span":
        return _parts(task, examples, results, lambda example: "answer" if example.target else "no answer")
    if task.kind == "multi":
        return _parts(task, examples, results, lambda example: example.problem or "")
    return _classes(examples, results)


def _parts(
    task: Task, examples: Sequence[Example], results: Sequence[Result], part: Callable[[Example], str]
) -> dict[str, dict[str, float]]:
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(part(example), []).append(index)
    parts: dict[str, dict[str, float]] = {}
    for name, chosen in sorted(members.items()):
        values = task.score([examples[i] for i in chosen], [results[i] for i in chosen]).values
        parts[name] = {"rows": len(chosen), **{metric: v for metric, v in values.items() if "/" not in metric}}
    return parts


def _classes(examples: Sequence[Example], results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every class; nothing for values."""
    right = [(i, name) for i, example in enumerate(examples) for name in _class_names(example.target)]
    said = [(i, name) for i, result in enumerate(results) for name in _said(result)]
    return _precision_recall(right, said) if right else {}


def _types(examples: Sequence[Example], results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every type of span: both ends and the type must be right."""
    right, said = [], []
    for index, (example, result) in enumerate(zip(examples, results, strict=True)):
        wanted, given = span_sets(example, result)
        right += [((index, start, end), label) for label, start, end in wanted]
        said += [((index, start, end), label) for label, start, end in given]
    return _precision_recall(right, said)


def _precision_recall(right: Sequence[tuple[Any, str]], said: Sequence[tuple[Any, str]]) -> dict[str, dict[str, float]]:
    hits = Counter(label for _, label in set(right) & set(said))
    wanted, given = Counter(label for _, label in right), Counter(label for _, label in said)
    names = [*dict(wanted.most_common()), *sorted(given.keys() - wanted.keys())]
    return {
        name: {
            "rows": wanted[name],
            "precision": hits[name] / given[name] if given[name] else 0.0,
            "recall": hits[name] / wanted[name] if wanted[name] else 0.0,
            "f1": 2 * hits[name] / (wanted[name] + given[name]),
        }
        for name in names
    }


def _class_names(target: Target | None) -> tuple[str, ...]:
    names = (target,) if isinstance(target, str) else target if isinstance(target, tuple) else ()
    return tuple(name for name in names if isinstance(name, str))


def _said(result: Result) -> tuple[str, ...]:
    if result.labels is not None:
        return result.labels
    return () if result.label is None else (result.label,)


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of texts and answers, whatever file they lie in."""
    digest = hashlib.sha256()
    for example in examples:
        row = [example.text, example.other, example.problem, to_dict(example.target)]
        digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()[:16]
