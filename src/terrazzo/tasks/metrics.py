"""Metrics of predictions, and how sure they are: bootstrap intervals over rows.

What sums over rows can tell (accuracy, F1, Matthews correlation) is computed from counts, so that a thousand resamples
are a small matrix product; the rest is resampled row by row.

Shapes: N rows, C classes, S resamples, K numbers a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from terrazzo.errors import InputError
from terrazzo.tasks.task import Example, Metric, Result

#: Numbers of one part of the resamples, so that a hundred thousand rows fit in memory.
_PART = 2**22


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SumMetric:
    """A metric that follows from sums over rows.

    Args:
        rows: `(N, K)` numbers of the rows.
        total: sums `(..., K)` to the metric `(...)`.
    """

    rows: Callable[[Sequence[Example], Sequence[Result]], np.ndarray]
    total: Callable[[np.ndarray], np.ndarray]

    def __call__(self, examples: Sequence[Example], results: Sequence[Result]) -> float:
        return float(self.total(self.rows(examples, results).sum(0)))


@dataclass(frozen=True)
class RowMetric:
    """A metric of arrays, one entry a row; a resample selects rows and computes it anew."""

    rows: Callable[[Sequence[Example], Sequence[Result]], np.ndarray]
    value: Callable[[np.ndarray], float]

    def __call__(self, examples: Sequence[Example], results: Sequence[Result]) -> float:
        return self.value(self.rows(examples, results))


def bootstrap(
    metric: Metric, examples: Sequence[Example], results: Sequence[Result], samples: int = 1000, seed: int = 0
) -> Interval:
    """A metric and its 95 % interval over resamples of the rows that have targets.

    Raises:
        InputError: no row has a target.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    examples, results = answered(examples, results)
    (drawn_S,) = _resamples(metric, examples, [results], samples, seed)
    return _interval(metric(examples, results), drawn_S)


def bootstrap_difference(
    metric: Metric,
    examples: Sequence[Example],
    results: Sequence[Result],
    others: Sequence[Result],
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """How much higher the metric of `others` is than that of `results`, resampling the same rows for both.

    Raises:
        InputError: no row has a target.
    """
    rows, results = answered(examples, results)
    _, others = answered(examples, others)
    drawn_S, others_S = _resamples(metric, rows, [results, others], samples, seed)
    return _interval(metric(rows, others) - metric(rows, results), others_S - drawn_S)


def answered(examples: Sequence[Example], results: Sequence[Result]) -> tuple[list[Example], list[Result]]:
    """The rows that have targets, with what was said about them.

    Raises:
        InputError: there is none.
    """
    pairs = [pair for pair in zip(examples, results, strict=True) if pair[0].target is not None]
    if not pairs:
        raise InputError(f"none of the {len(examples)} rows has an answer to compare with: add the column of answers")
    return [example for example, _ in pairs], [result for _, result in pairs]


def _resamples(
    metric: Metric, examples: Sequence[Example], systems: Sequence[Sequence[Result]], samples: int, seed: int
) -> np.ndarray:
    """The metric of each system on each resample, all systems on the same ones, `(systems, S)`."""
    if isinstance(metric, SumMetric):
        rows = [metric.rows(examples, results) for results in systems]
        sums_SK = _resampled_sums(np.hstack(rows), samples, seed)
        return np.stack([metric.total(part) for part in np.split(sums_SK, len(systems), axis=1)])
    indices = (index_N for part in _indices(len(examples), samples, seed) for index_N in part)
    if isinstance(metric, RowMetric):
        rows = [metric.rows(examples, results) for results in systems]
        return np.array([[metric.value(table[index_N]) for table in rows] for index_N in indices]).T
    return np.array(
        [
            [metric([examples[i] for i in index_N], [results[i] for i in index_N]) for results in systems]
            for index_N in indices
        ]
    ).T


def _resampled_sums(rows_NK: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums `(S, K)` over resamples of the rows.

    Most rows are alike: how often each distinct one is drawn is multinomial, which is much quicker than drawing rows.
    """
    seen: dict[bytes, int] = {}
    number_N = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows_NK])
    if 2 * len(seen) > len(rows_NK):
        times = (_times(index_SN) @ rows_NK for index_SN in _indices(len(rows_NK), samples, seed))
        return np.concatenate(list(times))
    _, first_G, counts_G = np.unique(number_N, return_index=True, return_counts=True)
    draw, size = np.random.default_rng(seed), max(1, _PART // len(first_G))
    parts = [min(size, samples - first) for first in range(0, samples, size)]
    share_G, distinct_GK = counts_G / len(rows_NK), rows_NK[first_G]
    return np.concatenate([draw.multinomial(len(rows_NK), share_G, size=part) @ distinct_GK for part in parts])


def _times(index_SN: np.ndarray) -> np.ndarray:
    """How often each row is in each resample, float64 `(S, N)`."""
    samples, rows = index_SN.shape
    flat = (index_SN + np.arange(samples)[:, None] * rows).ravel()
    return np.bincount(flat, minlength=samples * rows).reshape(samples, rows).astype(np.float64)


def _indices(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    draw, size = np.random.default_rng(seed), max(1, _PART // rows)
    for first in range(0, samples, size):
        yield draw.integers(rows, size=(min(size, samples - first), rows))


def _interval(value: float, resampled_S: np.ndarray) -> Interval:
    low, high = np.nanpercentile(resampled_S, [2.5, 97.5]) if np.isfinite(resampled_S).any() else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def class_counts(right_NC: np.ndarray, said_NC: np.ndarray, exact_N: np.ndarray) -> np.ndarray:
    """`(N, 3 C + 2)` numbers whose sums give every metric of classes: hits, answers and predictions of each class,
    whether the row is right throughout, and 1."""
    right, said = right_NC.astype(np.float64), said_NC.astype(np.float64)
    return np.hstack([right * said, right, said, exact_N[:, None], np.ones((len(right), 1))])


def accuracy_of(sums: np.ndarray) -> np.ndarray:
    """Share of rows that are right throughout, from sums of `class_counts`."""
    return sums[..., -2] / sums[..., -1]


def f1_of(sums: np.ndarray, average: str, positive: int = -1) -> np.ndarray:
    """F1 from sums of `class_counts`; 0 where nothing was answered or predicted.

    Args:
        average: "macro" is the mean over classes that occur in answers or predictions, "micro" counts all decisions
            together, "binary" takes the class `positive` alone.
    """
    hits, right, said = np.split(sums[..., :-2], 3, axis=-1)
    both = right + said
    if average == "binary":
        return _ratio(2 * hits[..., positive], both[..., positive])
    if average == "micro":
        return _ratio(2 * hits.sum(-1), both.sum(-1))
    return _ratio(_ratio(2 * hits, both).sum(-1), (both > 0).sum(-1))


def mcc_of(sums: np.ndarray) -> np.ndarray:
    """Matthews correlation of one class a row, from sums of `class_counts`; 0 where it is undefined.

    Rows without a prediction are one more class that is never the answer.

    Reference: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient (2004), Eq. 8.
    """
    hits, right, said = np.split(sums[..., :-2], 3, axis=-1)
    rows = sums[..., -1]
    covariance = hits.sum(-1) * rows - (right * said).sum(-1)
    spread_right = rows**2 - (right**2).sum(-1) - (rows - right.sum(-1)) ** 2
    spread_said = rows**2 - (said**2).sum(-1) - (rows - said.sum(-1)) ** 2
    return _ratio(covariance, np.sqrt(spread_right * spread_said))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def pearson(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Pearson's correlation; nan where one side does not vary."""
    a, b = a_N - a_N.mean(), b_N - b_N.mean()
    below = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / below, -1, 1)) if below > 0 else float("nan")


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Spearman's rank correlation, ties given their mean rank; nan where one side does not vary."""
    return pearson(_ranks(a_N), _ranks(b_N))


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auroc(positive_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; nan with one class alone."""
    positive_N = np.asarray(positive_N, dtype=bool)
    positives = int(positive_N.sum())
    if positives in (0, len(positive_N)):
        return float("nan")
    above = _ranks(np.asarray(scores_N))[positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(positive_N) - positives)))


def tpr_at_fpr(positive_N: np.ndarray, scores_N: np.ndarray, fpr: float = 0.01) -> float:
    """Largest share of positives at or above a threshold that at most a share `fpr` of negatives reaches; nan with one
    class alone."""
    positive_N, scores_N = np.asarray(positive_N, dtype=bool), np.asarray(scores_N)
    hits, negatives = scores_N[positive_N], np.sort(scores_N[~positive_N])[::-1]
    if not len(hits) or not len(negatives):
        return float("nan")
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    return float((hits > negatives[allowed]).mean()) if allowed < len(negatives) else 1.0


def confusion(right_N: Sequence[str], said_N: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """int64 `(C, C)` rows of answer i that were called class j, of the given classes alone."""
    place = {name: i for i, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)), dtype=np.int64)
    pairs = [(place[a], place[b]) for a, b in zip(right_N, said_N, strict=True) if a in place and b in place]
    if pairs:
        np.add.at(table, tuple(np.array(pairs).T), 1)
    return table
