"""Classes and values for a text or a pair of texts.

Shapes: B documents, N rows, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.heads import PooledHead, Pooling
from terrazzo.tasks.losses import (
    binary_cross_entropy_sum,
    class_weights,
    cross_entropy_sum,
    positive_weights,
    weights_like,
)
from terrazzo.tasks.metrics import RowMetric, SumMetric, accuracy_of, answered, auroc, class_counts, f1_of, mcc_of
from terrazzo.tasks.task import BadRow, Dropout, Encoded, Example, Metric, Result, Scores
from terrazzo.tasks.texts import encode_rows

LabelMetric = Literal["accuracy", "f1", "f1_binary", "micro_f1", "mcc", "auroc"]


@config
class LabelTask:
    """One class, or several at once, for a text or a pair of texts.

    Args:
        kind: "label" reads one text, "pair" two.
        classes: in the order of the outputs.
        counts: training rows of each class, which balanced weights need; rows: training rows in all.
        several: a row may have any number of the classes.
        threshold: probability from which one of several classes is given.
        metric: the main one. "accuracy" is the share of rows that are right throughout, "f1" the mean over classes,
            "micro_f1" counts all decisions together, "f1_binary" is that of the class `positive`, "mcc" Matthews
            correlation, "auroc" the area under the ROC curve of two classes.
        positive: the class that "f1_binary" and "auroc" look for; None is the last.
        pooling: "cls" reads the first token's hidden state, "last" the last one's, "mean" the mean of all.
        hidden: a dense layer with tanh in the head, as BERT has it.
        dropout: of the pooled vector.
    """

    kind: Literal["label", "pair"] = "label"
    classes: tuple[str, ...]
    counts: tuple[int, ...] = ()
    rows: int = 0
    several: bool = False
    threshold: float = 0.5
    metric: LabelMetric = "accuracy"
    positive: str | None = None
    pooling: Pooling = "mean"
    hidden: bool = False
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes {self.classes!r}: at least one, and each once")
        if self.counts and len(self.counts) != len(self.classes):
            raise InputError(f"counts: {len(self.counts)} numbers for {len(self.classes)} classes")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold must be between 0 and 1, got {self.threshold}")
        if self.positive is not None and self.positive not in self.classes:
            raise InputError(f"positive {self.positive!r} is not a class: {nearest(self.positive, self.classes)}")
        if self.several and self.metric in ("mcc", "auroc"):
            raise InputError(f'metric "{self.metric}" is for one class a row; take "f1", "micro_f1" or "accuracy"')
        if self.metric == "auroc" and len(self.classes) != 2:
            raise InputError(
                f'metric "auroc" is for two classes, these are {len(self.classes)}; take "accuracy" or "f1"'
            )

    @classmethod
    def learn(cls, examples: Sequence[Example], **options: Any) -> LabelTask:
        """The task of training rows: its classes in a fixed order, numbers by value and names by their letters.

        Raises:
            InputError: no row has a class, or all rows have the same.
        """
        targets = [_names(example) for example in examples if example.target is not None]
        counts = Counter(name for names in targets for name in set(names))
        several = any(isinstance(example.target, tuple) for example in examples)
        classes = options.pop("classes", None) or in_order(counts)
        if len(classes) < 2 and not several:
            held = f"all {len(targets)} rows have the class {classes[0]!r}" if classes else "no row has a class"
            raise InputError(f"{held}: a classifier needs rows of at least two")
        return cls(
            classes=tuple(classes),
            counts=tuple(counts[name] for name in classes),
            rows=len(targets),
            **{"several": several, **options},
        )

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """One document a row; bad rows have no text, a text too many or too few, or an unknown class."""
        return encode_rows(examples, tokenizer, max_len, self._label, pair=self.kind == "pair")

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights; outputs `(B, C)`."""
        return PooledHead(config, len(self.classes), self.pooling, self.dropout, self.hidden)

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Cross-entropy over the rows, of several classes their mean; logs `correct`: rows right throughout."""
        assert batch.labels_B is not None, "the batch has no labels"
        labels, gamma, smoothing = batch.labels_B, options.focal_gamma, options.label_smoothing
        if self.several:
            weights = positive_weights(options.class_weights, self.classes, self._counts, self.rows)
            total = binary_cross_entropy_sum(outputs, labels, weights_like(outputs, weights), gamma, smoothing)
            right_B = ((outputs.sigmoid() >= self.threshold) == (labels > 0.5)).all(1)
        else:
            weights = class_weights(options.class_weights, self.classes, self._counts)
            total = cross_entropy_sum(outputs, labels, weights_like(outputs, weights), gamma, smoothing)
            right_B = outputs.argmax(1) == labels
        return Loss(sum=total, weight=len(batch.lengths), logs={"correct": right_B.sum()})

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The `(C,)` outputs of each document."""
        return list(outputs.detach().float().cpu().numpy())

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The likeliest class with the probabilities of all; of several, also those above the threshold."""
        truncated = documents[0].truncated
        if not self.several:
            return class_result(self.classes, softmax(outputs[0]), truncated)
        probabilities = ranked(self.classes, 1 / (1 + np.exp(-outputs[0].astype(np.float64))))
        label = next(iter(probabilities))
        labels = tuple(name for name, value in probabilities.items() if value >= self.threshold)
        score = probabilities[label]
        return Result(label=label, labels=labels, score=score, probabilities=probabilities, truncated=truncated)

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Accuracy, F1 and, of one class a row, Matthews correlation; of two classes also binary F1 and the AUROC."""
        examples, results = answered(examples, results)
        sums = self._count(examples, results).sum(0)
        values = {name: float(total(sums)) for name, total in self._totals().items()}
        if len(self.classes) == 2 and not self.several:
            positive_N, scores_N = self._positives(examples, results).T
            values["auroc"] = auroc(positive_N, scores_N)
        return Scores(main=self.metric, values=values)

    def main_metric(self) -> Metric:
        """The field `metric` as a function of rows."""
        if self.metric == "auroc":
            return RowMetric(self._positives, lambda rows_N2: auroc(rows_N2[:, 0], rows_N2[:, 1]))
        if self.metric == "accuracy":
            return SumMetric(lambda examples, results: self._count(examples, results)[:, -2:], accuracy_of)
        return SumMetric(self._count, self._totals()[self.metric])

    @property
    def _counts(self) -> tuple[int, ...]:
        return self.counts or (1,) * len(self.classes)

    @property
    def _positive(self) -> str:
        return self.classes[-1] if self.positive is None else self.positive

    def _label(self, example: Example) -> np.ndarray:
        names = _names(example)
        for name in names:
            if name not in self.classes:
                raise InputError(
                    f"label {name!r} is not one of the {len(self.classes)} classes: {nearest(name, self.classes)}"
                )
        if self.several:
            return np.array([name in names for name in self.classes], dtype=np.float32)
        if len(names) != 1:
            raise InputError(f"{len(names)} classes in a task with one class a row: {names!r}")
        return np.array(self.classes.index(names[0]))

    def _totals(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        positive = self.classes.index(self._positive)
        totals: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "accuracy": accuracy_of,
            "f1": lambda sums: f1_of(sums, "macro"),
            "micro_f1": lambda sums: f1_of(sums, "micro"),
        }
        if len(self.classes) == 2 or self.positive is not None or self.metric == "f1_binary":
            totals["f1_binary"] = lambda sums: f1_of(sums, "binary", positive)
        return totals if self.several else totals | {"mcc": mcc_of}

    def _count(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        right = [_names(example) for example in examples]
        said = [_said(result, self.several) for result in results]
        exact = [said is not None and set(said) == set(right) for right, said in zip(right, said, strict=True)]
        said_NC = _indicators([names or () for names in said], self.classes)
        return class_counts(_indicators(right, self.classes), said_NC, np.array(exact))

    def _positives(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        """`(N, 2)`: whether a row is positive, and its probability; without an answer it is wrong on either side."""
        positive_N = np.array([example.target == self._positive for example in examples])
        scores = [(result.probabilities or {}).get(self._positive) for result in results]
        worst_N = np.where(positive_N, -1.0, 2.0)
        said = [wrong if score is None else score for score, wrong in zip(scores, worst_N, strict=True)]
        return np.stack([positive_N, np.array(said)], axis=1)


def in_order(names: Sequence[str] | Counter[str]) -> list[str]:
    """Distinct names in a fixed order: whole numbers by value, else by their letters."""
    distinct = set(names)
    if all(name.lstrip("-").isdecimal() for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def softmax(logits_C: np.ndarray) -> np.ndarray:
    """Probabilities, float64."""
    powers_C = np.exp(logits_C.astype(np.float64) - logits_C.max())
    return powers_C / powers_C.sum()


def ranked(classes: Sequence[str], probabilities_C: np.ndarray) -> dict[str, float]:
    """Probabilities by class, likeliest first, ties in the order of the classes."""
    values = probabilities_C.tolist()
    return {classes[i]: values[i] for i in np.argsort(-probabilities_C, kind="stable").tolist()}


def class_result(classes: Sequence[str], probabilities_C: np.ndarray, truncated: int) -> Result:
    """The answer of one class a row."""
    probabilities = ranked(classes, probabilities_C)
    label, score = next(iter(probabilities.items()))
    return Result(label=label, score=score, probabilities=probabilities, truncated=truncated)


def _names(example: Example) -> tuple[str, ...]:
    target = example.target
    if isinstance(target, str):
        return (target,)
    if isinstance(target, tuple):
        names = tuple(name for name in target if isinstance(name, str))
        if len(names) == len(target):
            return names
    raise InputError(f"{example.where}: the answer {target!r} is not a class".removeprefix(": "))


def _said(result: Result, several: bool) -> tuple[str, ...] | None:
    if several:
        return result.labels
    return None if result.label is None else (result.label,)


def _indicators(rows: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(classes)}
    table = np.zeros((len(rows), len(classes)), dtype=bool)
    for i, names in enumerate(rows):
        for name in names:
            if name in place:
                table[i, place[name]] = True
    return table
