"""Several problems on one encoder, each with classes of its own.

Shapes: B documents, N rows, K problems, C classes of all problems side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.heads import PooledHead, Pooling
from terrazzo.tasks.label import class_result, in_order, softmax
from terrazzo.tasks.losses import check_weights, class_weights, cross_entropy_sum, weights_like
from terrazzo.tasks.metrics import SumMetric, answered
from terrazzo.tasks.task import BadRow, Dropout, Encoded, Example, Metric, Result, Scores
from terrazzo.tasks.texts import encode_rows


@config
class Problem:
    """One of several problems: its name, its classes in the order of the outputs, and the training rows of each."""

    name: str
    classes: tuple[str, ...]
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"problem {self.name!r}: classes {self.classes!r}: at least one, and each once")
        if self.counts and len(self.counts) != len(self.classes):
            raise InputError(f"problem {self.name!r}: {len(self.counts)} counts for {len(self.classes)} classes")


@config
class MultiTask:
    """One class a row, of the row's own problem; a label that two problems share is two classes.

    With probabilities over a row's own problem alone, p(y | x, k) = softmax(z + log m_k), other problems' classes get
    exactly 0.

    Args:
        pooling, hidden, dropout: the head, as `LabelTask` has it.

    Reference: arXiv 2111.03963.
    """

    kind: Literal["multi"] = "multi"
    problems: tuple[Problem, ...]
    pooling: Pooling = "mean"
    hidden: bool = False
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        names = [problem.name for problem in self.problems]
        if not names or len(set(names)) < len(names):
            raise InputError(f"problems {names!r}: at least one, and each once")

    @classmethod
    def learn(cls, examples: Sequence[Example], **options: Any) -> MultiTask:
        """The task of training rows: the problems in a fixed order, and the classes of each.

        Raises:
            InputError: a row without problem or class, or a problem with less than two classes.
        """
        rows: dict[str, Counter[str]] = {}
        for example in examples:
            if example.target is not None:
                rows.setdefault(_problem_name(example), Counter())[_class_name(example)] += 1
        problems = options.pop("problems", None) or [problem_of(name, rows[name]) for name in in_order(list(rows))]
        return cls(problems=tuple(problems), **options)

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """One document a row; bad rows have no text, no problem or an unknown one, or a class that theirs has not."""
        return encode_rows(examples, tokenizer, max_len, self._label, problem=self.problem_index)

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights; outputs `(B, C)`, a linear map for each problem."""
        sizes = [len(problem.classes) for problem in self.problems]
        return PooledHead(config, sizes, self.pooling, self.dropout, self.hidden)

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Cross-entropy over the classes of each row's own problem, or of all with `problem_loss` "all".

        Class weights by name are written "problem/class". Logs `correct`, among the classes of the row's problem.
        """
        assert batch.labels_B is not None and batch.problems_B is not None, "the batch has no labels or problems"
        own_BC = self.own_classes(batch.problems_B)
        total = cross_entropy_sum(
            outputs,
            batch.labels_B,
            weights_like(outputs, self._weights(options)),
            options.focal_gamma,
            options.label_smoothing,
            own_BC if options.problem_loss == "own" else None,
        )
        right_B = outputs.masked_fill(~own_BC, -torch.inf).argmax(1) == batch.labels_B
        return Loss(sum=total, weight=len(batch.lengths), logs={"correct": right_B.sum()})

    def own_classes(self, problems_B: Tensor) -> Tensor:
        """bool `(B, C)`: the classes of each row's problem, m_k of the equation."""
        sizes = [len(problem.classes) for problem in self.problems]
        owner_C = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(problems_B.device)
        return owner_C == problems_B[:, None]

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The `(C,)` outputs of each document."""
        return list(outputs.detach().float().cpu().numpy())

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The likeliest class of the row's problem, with the probabilities of all of that problem's."""
        index = self.problem_index(example)
        own = slice(self._first(index), self._first(index + 1))
        return class_result(self.problems[index].classes, softmax(outputs[0][own]), documents[0].truncated)

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Accuracy: the mean over problems, of all rows together, and of each problem by its name.

        Rows of an unknown problem are wrong, and are one problem more.
        """
        examples, results = answered(examples, results)
        right_K, rows_K = np.split(self._count(examples, results).sum(0), 2)
        names = [problem.name for problem in self.problems]
        own = {f"accuracy/{name}": right_K[i] / rows_K[i] for i, name in enumerate(names) if rows_K[i]}
        values = {"accuracy": _mean_accuracy(np.hstack([right_K, rows_K])), "all_rows": right_K.sum() / rows_K.sum()}
        return Scores(main="accuracy", values={name: float(value) for name, value in (values | own).items()})

    def main_metric(self) -> Metric:
        """The mean over problems of their accuracies, as a function of rows."""
        return SumMetric(self._count, _mean_accuracy)

    def problem_index(self, example: Example) -> int:
        """The number of a row's problem.

        Raises:
            InputError: the row names none, or one that is unknown.
        """
        name, names = _problem_name(example), [problem.name for problem in self.problems]
        if name not in names:
            raise InputError(f"problem {name!r} is not one of the model's {len(names)}: {nearest(name, names)}")
        return names.index(name)

    def _label(self, example: Example) -> np.ndarray:
        index, name = self.problem_index(example), _class_name(example)
        problem = self.problems[index]
        if name not in problem.classes:
            known = f"the {len(problem.classes)} classes of problem {problem.name!r}"
            raise InputError(f"label {name!r} is not one of {known}: {nearest(name, problem.classes)}")
        return np.array(self._first(index) + problem.classes.index(name))

    def _first(self, index: int) -> int:
        return sum(len(problem.classes) for problem in self.problems[:index])

    def _weights(self, options: SupervisedConfig) -> list[float] | None:
        wanted = options.class_weights
        if wanted is None:
            return None
        if not isinstance(wanted, str):
            check_weights(wanted, [f"{p.name}/{name}" for p in self.problems for name in p.classes])
        weights: list[float] = []
        for p in self.problems:
            own = wanted if isinstance(wanted, str) else _own_weights(wanted, p)
            weights += class_weights(own, p.classes, p.counts or (1,) * len(p.classes)) or []
        return weights

    def _count(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        """`(N, 2 (K + 1))`: whether a row is right, and 1, in the column of its problem; unknown problems come last."""
        place = {problem.name: i for i, problem in enumerate(self.problems)}
        size = len(place) + 1
        table = np.zeros((len(examples), 2 * size))
        for row, example, result in zip(table, examples, results, strict=True):
            column = place.get(example.problem or "", size - 1)
            row[column] = result.label == example.target
            row[size + column] = 1
        return table


def problem_of(name: str, counts: Mapping[str, int]) -> Problem:
    """A problem from its training rows of each class.

    Raises:
        InputError: less than two classes.
    """
    if len(counts) < 2:
        raise InputError(f"problem {name!r} has rows of {len(counts)} class only: it needs at least two")
    classes = in_order(list(counts))
    return Problem(name=name, classes=tuple(classes), counts=tuple(counts[label] for label in classes))


def _own_weights(wanted: Mapping[str, float], problem: Problem) -> dict[str, float]:
    return {name: wanted.get(f"{problem.name}/{name}", 1.0) for name in problem.classes}


def _mean_accuracy(sums: np.ndarray) -> np.ndarray:
    right, rows = np.split(sums, 2, axis=-1)
    each = np.divide(right, rows, out=np.zeros_like(right), where=rows > 0)
    return each.sum(-1) / (rows > 0).sum(-1)


def _problem_name(example: Example) -> str:
    if example.problem is None:
        raise InputError(f"{example.where}: no problem is named: add the field problem".removeprefix(": "))
    return example.problem


def _class_name(example: Example) -> str:
    if not isinstance(example.target, str):
        raise InputError(f"{example.where}: the answer {example.target!r} is not a class".removeprefix(": "))
    return example.target
