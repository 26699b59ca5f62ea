"""Tasks that need no training: minimal pairs and similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from terrazzo.checkpoint import load_model, load_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM
from terrazzo.tasks.metrics import RowMetric, bootstrap, spearman
from terrazzo.tasks.minimal_pairs import read_minimal_pairs, score_minimal_pairs
from terrazzo.tasks.sts import similarities
from terrazzo.tasks.suites.manifest import Procedure, SuiteTask
from terrazzo.tasks.suites.result import TaskOutcome
from terrazzo.tasks.suites.sources import task_rows
from terrazzo.tasks.task import Example, Result


def run_minimal_pairs(task: SuiteTask, procedure: Procedure, model: Path, data_root: Path) -> TaskOutcome:
    """Accuracy over paradigms with its interval over pairs; `procedure.eval_rows` pairs of each.

    Raises:
        InputError: the model has no masked-language-model head.
    """
    network = load_model(model)
    if not isinstance(network, MaskedLM):
        raise InputError(
            f"{model}: has no masked-language-model head, which scores minimal pairs; take the pretrained model"
        )
    (folder,) = task.evaluate.values()
    pairs = read_minimal_pairs(data_root / folder, procedure.eval_rows)
    scores = score_minimal_pairs(network, load_tokenizer(model, network.config), pairs)
    few = f"the first {procedure.eval_rows} pairs of each of {len(scores.paradigms)} paradigms"
    return replace(
        outcome_of(task, procedure, scores.accuracy, {"pairs": scores.pairs}),
        note="; ".join(filter(None, (task.note, few if procedure.eval_rows else ""))),
        low=scores.accuracy - scores.half_width,
        high=scores.accuracy + scores.half_width,
        groups=scores.phenomena,
    )


def run_similarity(task: SuiteTask, procedure: Procedure, model: Path, data_root: Path, cache: Path) -> TaskOutcome:
    """Spearman's correlation of cosines with human scores, with its bootstrap interval over pairs."""
    network = load_model(model)
    encoder = network.encoder if isinstance(network, MaskedLM) else network
    tokenizer = load_tokenizer(model, encoder.config)
    intervals, counts = [], {}
    for part, examples in task_rows(task, procedure, data_root, cache).evaluate.items():
        cosines = similarities(encoder, tokenizer, examples)
        results = [Result(score=float(cosine)) for cosine in cosines]
        intervals.append(bootstrap(RowMetric(_columns, _spearman), examples, results))
        counts[part] = len(examples)
    return replace(
        outcome_of(task, procedure, fmean(interval.value for interval in intervals), counts),
        low=fmean(interval.low for interval in intervals),
        high=fmean(interval.high for interval in intervals),
    )


def outcome_of(task: SuiteTask, procedure: Procedure, score: float, rows: dict[str, int]) -> TaskOutcome:
    """The outcome of a task with what its manifest says of it."""
    return TaskOutcome(
        name=task.name,
        title=task.title,
        metrics=task.metrics,
        score=score,
        rows=rows,
        procedure=procedure,
        note=task.note,
        published=task.published,
    )


def _columns(examples: Sequence[Example], results: Sequence[Result]) -> np.ndarray:
    return np.array([(result.score, example.target) for example, result in zip(examples, results, strict=True)])


def _spearman(rows: np.ndarray) -> float:
    value = spearman(rows[:, 0], rows[:, 1])
    return value if np.isfinite(value) else 0.0
