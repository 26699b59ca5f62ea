"""A value for a text or a pair of texts.

Shapes: B documents, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.heads import PooledHead, Pooling
from terrazzo.tasks.losses import squared_error_sum
from terrazzo.tasks.metrics import RowMetric, answered, pearson, spearman
from terrazzo.tasks.task import BadRow, Dropout, Encoded, Example, Metric, Result, Scores
from terrazzo.tasks.texts import encode_rows

#: Beyond it the squares of values that their deviation is made of are infinite.
_LARGEST = 1e150
_CORRELATIONS = {"spearman": spearman, "pearson": pearson}


@config
class RegressionTask:
    """A value for a text or a pair, learned by squared error on values of mean 0 and deviation 1.

    Args:
        pair: whether rows have two texts.
        mean, std: of the training rows' values; outputs are in these units, answers in the rows' own.
        metric: the main one, "spearman" or "pearson".
        pooling, hidden, dropout: the head, as `LabelTask` has it.
    """

    kind: Literal["regression"] = "regression"
    pair: bool = False
    mean: float = 0.0
    std: float = 1.0
    metric: Literal["spearman", "pearson"] = "spearman"
    pooling: Pooling = "mean"
    hidden: bool = False
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise InputError(f"std must be above 0, got {self.std}")

    @classmethod
    def learn(cls, examples: Sequence[Example], **options: Any) -> RegressionTask:
        """The task of training rows: mean and deviation of their values, and whether they are pairs.

        Raises:
            InputError: no row has a value, an answer is none, or all values are equal.
        """
        values = np.array([_value(example) for example in examples if example.target is not None])
        largest = max(map(abs, values), default=0.0)
        if largest > _LARGEST:
            raise InputError(
                f"a row has the value {largest:g}, beyond what can be learned: give values in larger units"
            )
        if not len(values) or values.std() == 0:
            held = f"all {len(values)} rows have the value {values[0]:g}" if len(values) else "no row has a value"
            raise InputError(f"{held}: a regression needs rows of different values")
        pair = all(example.other is not None for example in examples)
        return cls(**{"pair": pair, "mean": float(values.mean()), "std": float(values.std()), **options})

    def encode_many(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int
    ) -> list[list[Encoded] | BadRow]:
        """One document a row; bad rows have no text, a text too many or too few, or an answer that is no number."""
        return encode_rows(examples, tokenizer, max_len, lambda e: np.array(_value(e), dtype=np.float64), self.pair)

    def build_head(self, config: EncoderConfig) -> nn.Module:
        """The head with fresh weights; outputs `(B, 1)`."""
        return PooledHead(config, 1, self.pooling, self.dropout, self.hidden)

    def loss(self, outputs: Tensor, batch: Packed, options: SupervisedConfig) -> Loss:
        """Squared error in units of the training rows' variance.

        Raises:
            InputError: an option that only classes have.
        """
        assert batch.labels_B is not None, "the batch has no labels"
        if options.class_weights is not None or options.focal_gamma or options.label_smoothing:
            raise InputError("class_weights, focal_gamma and label_smoothing are for classes; a regression has values")
        total = squared_error_sum(outputs[:, 0], ((batch.labels_B.double() - self.mean) / self.std).float())
        return Loss(sum=total, weight=len(batch.lengths))

    def split(self, outputs: Tensor, batch: Packed) -> list[np.ndarray]:
        """The `(1,)` output of each document."""
        return list(outputs.detach().float().cpu().numpy())

    def decode(self, example: Example, documents: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Result:
        """The value, as `score`."""
        return Result(score=float(outputs[0][0]) * self.std + self.mean, truncated=documents[0].truncated)

    def score(self, examples: Sequence[Example], results: Sequence[Result]) -> Scores:
        """Both correlations and the root of the mean squared error; a row without an answer is given the mean value."""
        pairs_N2 = self._pairs(*answered(examples, results))
        values = {name: _correlation(name, pairs_N2) for name in _CORRELATIONS}
        values["rmse"] = float(np.sqrt(((pairs_N2[:, 0] - pairs_N2[:, 1]) ** 2).mean()))
        return Scores(main=self.metric, values=values)

    def main_metric(self) -> Metric:
        """The field `metric` as a function of rows."""
        return RowMetric(self._pairs, lambda pairs_N2: _correlation(self.metric, pairs_N2))

    def _pairs(self, examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
        said = [self.mean if result.score is None else result.score for result in results]
        return np.array([[_value(example), value] for example, value in zip(examples, said, strict=True)])


def _correlation(name: str, pairs_N2: np.ndarray) -> float:
    """The correlation, 0 where one side does not vary: nothing is told about the other."""
    value = _CORRELATIONS[name](pairs_N2[:, 0], pairs_N2[:, 1])
    return 0.0 if math.isnan(value) else value


def _value(example: Example) -> float:
    value = example.target
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{example.where}: the answer {value!r} is not a number".removeprefix(": "))
    return float(value)
