"""The model that is compressed: its rows as documents, its answers on any runtime, how much worse another one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import torch

from terrazzo.checkpoint.folder import PACKED_WEIGHTS
from terrazzo.compression.rows import Split, refuse_unknown
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.runtime import Runtime
from terrazzo.tasks.batches import by_budget, collate
from terrazzo.tasks.export import Source, open_source
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.metrics import Interval, SumMetric, answered, bootstrap, bootstrap_difference
from terrazzo.tasks.model import HOW_TO_FINETUNE, LoadedTask, TaskModel
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.suspicions import class_key
from terrazzo.tasks.task import Encoded, Example, Metric, Result, Task

#: Resamples of a drop's interval.
SAMPLES = 4000
#: Tokens of one forward pass of a loss.
_TOKENS = 4096
#: Rows without answers that tell whether the others are of the task.
_LOOKED_AT = 1000


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How many points one model lies below another on the same rows.

    Args:
        dense, small: the metric of each, times 100; points: their difference.
        low, high: its 95 % bootstrap interval; most: the upper end of the one-sided one.
        changed: share of rows whose answers are right with one model and wrong with the other; None where that makes no
            sense.
    """

    dense: float
    small: float
    points: float
    low: float
    high: float
    most: float
    changed: float | None
    rows: int


class Subject:
    """A dense task model and the rows that it is compressed by."""

    def __init__(self, source: Source, split: Split) -> None:
        assert source.task is not None
        self.source, self.split, self.loaded = source, split, source.task
        self.model.eval()

    @property
    def model(self) -> TaskModel:
        return self.loaded.model

    @property
    def task(self) -> Task:
        return self.model.task

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder

    @cached_property
    def learn(self) -> LabelledRows:
        """The rows to learn from that the task can use, as documents."""
        return self._encoded(self.split.learn, self.split.source)

    @cached_property
    def lessons(self) -> LabelledRows:
        """The rows to learn from, and those without answers, answered by the dense model."""
        if not self.split.texts:
            return self.learn
        said = self.answers(self.split.texts)
        pairs = zip(self.split.texts, said, strict=True)
        answered = [replace(row, target=answer_of(result)) for row, result in pairs if result.error is None]
        more = self._encoded(answered, "texts")
        return LabelledRows(
            examples=[*self.learn.examples, *more.examples], documents=[*self.learn.documents, *more.documents]
        )

    @cached_property
    def choose(self) -> LabelledRows:
        """The rows to choose by that the task can use, as documents."""
        return self._encoded(self.split.choose, self.split.judging)

    @cached_property
    def proof(self) -> LabelledRows:
        """The rows to prove by that the task can use: what both models cannot answer would thin the drop out."""
        return self._encoded(self.split.proof, self.split.judging)

    @cached_property
    def dense_answers(self) -> list[Result]:
        """What the dense model says of the rows to choose by."""
        return self.answers(self.choose.examples)

    @property
    def selects(self) -> bool:
        """Whether the head asks the encoder for one token of each document alone."""
        return isinstance(self.task, (LabelTask, MultiTask, RegressionTask)) and self.task.pooling != "mean"

    @property
    def pooled(self) -> bool:
        """Whether the head takes documents as they are, without places in them."""
        return isinstance(self.task, (LabelTask, RegressionTask))

    def with_encoder(self, encoder: Encoder) -> TaskModel:
        """A model of the same task and head around another encoder."""
        with torch.random.fork_rng(devices=[]):
            model = TaskModel(encoder, self.task)
        model.head.load_state_dict(self.model.head.state_dict())
        return model.eval()

    def answers(
        self, rows: Sequence[Example], model: TaskModel | None = None, runtime: Runtime | None = None
    ) -> list[Result]:
        """What a model of this task says of rows, its encoder on a runtime; None is the dense one on PyTorch."""
        model = model or self.model
        return Predictor(model, self.loaded.tokenizer, self.loaded.max_len, runtime=runtime).predict(rows)

    def select(self, batch: Packed) -> torch.Tensor | None:
        """The tokens of a batch whose state the head reads; None for all."""
        if not self.selects:
            return None
        assert isinstance(self.task, (LabelTask, MultiTask, RegressionTask))
        return batch.cu_seqlens[:-1] if self.task.pooling == "cls" else batch.cu_seqlens[1:] - 1

    def refuse_texts(self, source: str) -> None:
        """Refuse rows without answers of which most are none of the task's.

        Raises:
            InputError: naming `source` and the first of them.
        """
        self._encoded(self.split.texts[:_LOOKED_AT], source)

    def loss(self, model: TaskModel, rows: int) -> float:
        """The task's mean loss of a model over the last rows to learn from, so that those to choose by stay apart."""
        total, weight = 0.0, 0.0
        with torch.inference_mode():
            for batch in batches(self.learn.flat[-rows:]):
                part = model.task_loss(batch, SupervisedConfig())
                total, weight = total + float(part.sum), weight + float(part.weight)
        return total / weight

    def _encoded(self, rows: Sequence[Example], source: str) -> LabelledRows:
        given = self.task.encode_many(rows, self.loaded.tokenizer, self.loaded.max_len)
        refuse_unknown(given, source)
        return LabelledRows.usable(rows, given)


def answer_of(result: Result) -> str | float | tuple[str, ...] | None:
    """What a model said of a text, as a row's answer."""
    if result.labels is not None:
        return result.labels
    return result.score if result.label is None else result.label


def open_subject(model: str | Path) -> Source:
    """A model folder that can be compressed.

    Raises:
        InputError: no task's head, or a model that was compressed before.
    """
    source = open_source(model)
    config = source.encoder.config
    if source.task is None:
        raise InputError(f"{source.folder}: a model without the head of a task: {HOW_TO_FINETUNE}")
    if (source.folder / PACKED_WEIGHTS).is_file():
        raise InputError(
            f"{source.folder}: is compressed already (its weights have few bits): compress the model that it was made "
            "from"
        )
    if config.kept_heads is not None or config.mlp_widths is not None:
        heads = sum(len(config.layer_heads(layer)) for layer in range(config.depth))
        units = sum(config.layer_mlp_width(layer) for layer in range(config.depth))
        raise InputError(
            f"{source.folder}: is compressed already ({heads} of {config.depth * config.num_heads} heads and {units:,} "
            f"of {config.depth * config.mlp_width:,} units are left): compress the model that it was made from"
        )
    return source


def drop_of(task: Task, rows: Sequence[Example], dense: Sequence[Result], small: Sequence[Result]) -> Drop:
    """How many points `small` lies below `dense`, by a paired bootstrap over rows.

    Raises:
        InputError: no row has an answer, or the metric is not a number on these rows.
    """
    metric = task.main_metric()
    both = bootstrap_difference(metric, rows, small, dense, SAMPLES)
    if not np.isfinite([both.value, both.low, both.high]).all():
        raise InputError(
            f"{len(rows):,} rows: the task's metric is not a number on them (does every answer occur?): give others"
        )
    examples, first = answered(rows, dense)
    _, second = answered(rows, small)
    changed = _changed(examples, first, second)
    told = changed if both.high > both.low else 0.0  # where no resample differs, nothing that counts has changed
    unseen = rare(told, len(examples))
    if not (isinstance(task, LabelTask) and task.metric == "accuracy"):
        unseen = max(unseen, rare_in_classes(metric, examples, first, second, told == 0))
    most = max(one_sided(both), both.value + unseen)
    return Drop(
        dense=100 * metric(examples, first),
        small=100 * metric(examples, second),
        points=100 * both.value,
        low=100 * both.low,
        high=100 * both.high,
        most=100 * most,
        changed=changed,
        rows=len(examples),
    )


def one_sided(interval: Interval) -> float:
    """The upper end of a one-sided 95 % interval, from a two-sided one, as if normal."""
    return interval.value + (interval.high - interval.low) / 2 * (1.645 / 1.960)


def rare(changed: float | None, rows: int) -> float:
    """How far the difference of two accuracies may lie above what was measured, one-sided with 95 % confidence, where
    so few answers change that resamples of the rows do not tell: with none, 2.3 / rows, where a bootstrap says 0.

    Reference: Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data (2012).
    """
    return 0.0 if changed is None else 1.645 * float(np.sqrt(changed * rows + 2)) / (rows + 2)


def rare_in_classes(
    metric: Metric, rows: Sequence[Example], dense: Sequence[Result], small: Sequence[Result], same: bool
) -> float:
    """The same where a metric weighs classes or problems of few rows as much as others: how far it falls if, in one of
    them, as many more answers are wrong as `rare` says of its own rows.

    Args:
        same: nothing that counts has changed, as far as resamples tell.
    """
    classes: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if isinstance(row.target, str):
            classes.setdefault(class_key(row), []).append(place)
    fall, most = _fall(metric, rows, small), 0.0
    for places in classes.values():
        right = [small[place].label == rows[place].target for place in places]
        before = [dense[place].label == rows[place].target for place in places]
        changed = 0.0 if same else float(np.mean(np.array(right) != np.array(before)))
        wanted = rare(changed, len(places)) * len(places)
        some = [place for place, good in zip(places, right, strict=True) if good][: ceil(wanted)]
        if some:
            spoilt = {place: replace(small[place], label=_other(rows, place)) for place in some}
            most = max(most, fall(spoilt) * min(1.0, wanted / len(some)))
    return most


def _fall(
    metric: Metric, rows: Sequence[Example], results: Sequence[Result]
) -> Callable[[Mapping[int, Result]], float]:
    """How far a metric falls if a few results are others; of one made of sums, those rows alone are counted anew."""
    if not isinstance(metric, SumMetric):
        whole = metric(rows, results)
        return lambda others: whole - metric(rows, [others.get(place, one) for place, one in enumerate(results)])
    each_NK = metric.rows(rows, results)
    sums_K = each_NK.sum(0)

    def fall(others: Mapping[int, Result]) -> float:
        places = list(others)
        changed_NK = metric.rows([rows[place] for place in places], list(others.values()))
        return float(metric.total(sums_K) - metric.total(sums_K + (changed_NK - each_NK[places]).sum(0)))

    return fall


def _other(rows: Sequence[Example], place: int) -> str | None:
    """Another class of the row's problem."""
    row = rows[place]
    others = (one.target for one in rows if one.problem == row.problem and one.target != row.target)
    return next((target for target in others if isinstance(target, str)), None)


def batches(documents: Sequence[Encoded], tokens: int = _TOKENS) -> Iterator[Packed]:
    """Documents with their labels as batches."""
    for chosen in by_budget([len(document.ids) for document in documents], tokens):
        yield collate([documents[index] for index in chosen])


def _changed(rows: Sequence[Example], one: Sequence[Result], other: Sequence[Result]) -> float | None:
    if not all(isinstance(row.target, str) for row in rows):
        return None
    right = [[result.label == row.target for row, result in zip(rows, some, strict=True)] for some in (one, other)]
    return float(np.mean(np.array(right[0]) != np.array(right[1])))


def refuse_guessing(task: Task, rows: Sequence[Example], results: Sequence[Result], source: str) -> None:
    """Refuse rows on which the dense model is no better than chance: they are of another task.

    That is the commonest answer where a row has one class, and a metric of 0 elsewhere.

    Raises:
        InputError: with both figures.
    """
    if not isinstance(task, LabelTask) or task.several:
        scored = bootstrap(task.main_metric(), rows, results)
        if not scored.low > 0:
            raise InputError(
                f"{source}: {task.score(rows, results).main} of the model is {100 * scored.value:.1f} on these rows, "
                "which chance alone would reach: they seem to be of another task; give rows like those it was "
                "fine-tuned on"
            )
        return
    targets = [row.target for row in rows]
    commonest = max(targets.count(name) for name in set(targets)) / len(targets)
    right = float(np.mean([result.label == row.target for row, result in zip(rows, results, strict=True)]))
    if right <= commonest:
        raise InputError(
            f"{source}: the model answers {right:.1%} of these rows rightly, and the commonest answer alone "
            f"{commonest:.1%}: they seem to be of another task; give rows like those it was fine-tuned on"
        )


__all__ = ["Drop", "LoadedTask", "Subject", "batches", "drop_of", "open_subject", "refuse_guessing"]
