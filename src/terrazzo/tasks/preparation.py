"""Rows and model of a fine-tuning, read and understood before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from terrazzo.checkpoint import load_config, load_tokenizer
from terrazzo.data.keyed import derive
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.tasks.choice import build_task
from terrazzo.tasks.extend import extend_task_model
from terrazzo.tasks.finetune_config import FinetuneConfig, steps_of
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import TaskModel, is_task_folder, load_task_model, model_folder
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.rows import read_rows
from terrazzo.tasks.suspicions import text_key
from terrazzo.tasks.task import BadRow, Example, Result, Task
from terrazzo.tasks.training import TaskWorkload
from terrazzo.tasks.understood import Understanding, understand

#: Share of the training rows that score the models where no other rows do.
HELD_OUT = 0.1
#: Steps below which a run is said to be short.
FEW_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Rows and model as every run takes them.

    Args:
        encoder: architecture of the model.
    """

    workload: TaskWorkload
    encoder: EncoderConfig
    understanding: Understanding


def prepare(
    config: FinetuneConfig, train: Sequence[Example] | None = None, dev: Sequence[Example] | None = None
) -> Prepared:
    """Read, understand and tokenize the rows, and find the task that they make.

    Training rows that the task cannot use are left out, with a warning; those that score the model count as wrong.

    Raises:
        InputError: rows or a model that cannot be used.
    """
    folder = model_folder(config.model)
    encoder = load_config(folder)
    tokenizer = load_tokenizer(folder, encoder)
    max_len = _max_len(config, encoder)
    train, dev, ignored = _rows(config, train, dev)
    task, initial = _task(config, folder, train)
    documents = [task.encode_many(rows, tokenizer, max_len) for rows in (train, dev)]
    understanding = understand(
        train, dev, task, tokenizer, max_len, train_documents=documents[0], dev_documents=documents[1], ignored=ignored
    )
    _refuse_hopeless(documents[0], "train")
    _refuse_hopeless(documents[1], "eval")
    _refuse_undefined(task, dev)
    understanding = replace(understanding, warnings=(*understanding.warnings, *_few_steps(config, documents[0])))
    workload = TaskWorkload(
        task=task,
        tokenizer=tokenizer,
        train=LabelledRows.usable(train, documents[0]),
        dev=LabelledRows.scoring(task, dev, documents[1], tokenizer, max_len),
        max_len=max_len,
        batch_size=config.batch_size,
        freeze=config.freeze,
        adapter=config.chosen_adapter,
        initial=initial,
    )
    return Prepared(workload=workload, encoder=encoder, understanding=understanding)


def hold_out(rows: Sequence[Example], share: float = HELD_OUT) -> tuple[list[Example], list[Example]]:
    """Training rows and those held out of them, by a hash of the text; texts equal but for case stay together."""
    texts = [text_key(row)[0] for row in rows]
    ranked = sorted(set(texts), key=lambda text: derive(0, "held out", text))
    held = set(ranked[: max(1, round(share * len(ranked)))])
    return (
        [row for row, text in zip(rows, texts, strict=True) if text not in held],
        [row for row, text in zip(rows, texts, strict=True) if text in held],
    )


def _rows(
    config: FinetuneConfig, train: Sequence[Example] | None, dev: Sequence[Example] | None
) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """Training rows, scoring rows, and columns that no field takes."""
    ignored: tuple[str, ...] = ()
    if train is None:
        if not config.train:
            raise InputError("train: name a file of labelled rows")
        read = read_rows(config.train, config.task, config.fields)
        train, ignored = _examples(read.examples), read.ignored
    if dev is None and config.eval:
        dev = _examples(read_rows(config.eval, config.task, config.fields).examples)
    if dev is None:
        train, dev = hold_out(train)
        if not train:
            raise InputError("train: one text alone cannot teach and score; give more rows, or others with --eval")
        if len(_classes(train)) == 1 < len(_classes([*train, *dev])):
            raise InputError("train: a tenth held out leaves rows of one class; give more rows, or others with --eval")
    return list(train), [row for row in dev if row.target is not None], ignored


def _examples(rows: Sequence[Example | BadRow]) -> list[Example]:
    return [row for row in rows if isinstance(row, Example)]


def _classes(rows: Sequence[Example]) -> set[str]:
    return {row.target for row in rows if isinstance(row.target, str)}


def _task(config: FinetuneConfig, folder: Path, rows: Sequence[Example]) -> tuple[Task, TaskModel | None]:
    """The task that the rows make; a model of several problems learns further ones without forgetting its classes."""
    task = build_task(config.task, rows, config.options)
    if not (isinstance(task, MultiTask) and is_task_folder(folder)):
        return task, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        loaded = load_task_model(folder).model
        if not isinstance(loaded.task, MultiTask):
            return task, None
        _refuse_other_head(loaded.task, task, config)
        extended = extend_task_model(loaded, task, freeze=config.freeze == "encoder")
    return extended.task, extended


def _refuse_other_head(known: MultiTask, asked: MultiTask, config: FinetuneConfig) -> None:
    """Refuse options by which a further problem would be read otherwise than those that the model knows."""
    for name in config.options:
        old, new = getattr(known, name), getattr(asked, name)
        if name != "problems" and old != new:
            raise InputError(
                f"options.{name}={new}: the problems of {config.model} share a head with {old}; leave it out"
            )


def _refuse_hopeless(documents: Sequence[Sequence[object] | BadRow], part: str) -> None:
    bad = [given for given in documents if isinstance(given, BadRow)]
    if len(bad) == len(documents):
        first = f"; the first: {bad[0].where}: {bad[0].message}" if bad else ""
        raise InputError(f"{part}: none of the {len(documents)} rows can be used{first}")


def _few_steps(config: FinetuneConfig, documents: Sequence[Sequence[object] | BadRow]) -> list[str]:
    """A warning where a run ends before it can have learned much."""
    usable = [given for given in documents if not isinstance(given, BadRow)]
    steps = steps_of(config, sum(map(len, usable)))
    if config.budget is not None or steps >= FEW_STEPS:
        return []
    passes = f"{config.epochs:g} pass{'es' * (config.epochs != 1)} over {len(usable):,} row{'s' * (len(usable) != 1)}"
    return [f"{passes}: only {steps} step{'s' * (steps != 1)}, too few to learn much; try --epochs 20 --patience 3"]


def _refuse_undefined(task: Task, dev: Sequence[Example]) -> None:
    """Refuse scoring rows on which the main metric has no value, whatever a model says of them."""
    scores = task.score(dev, [Result(error="not asked")] * len(dev))
    if not math.isfinite(scores.value):
        raise InputError(f"eval: {scores.main} has no value on these {len(dev)} rows, all of one class; add others")


def _max_len(config: FinetuneConfig, encoder: EncoderConfig) -> int:
    if config.max_len is None:
        return encoder.max_len
    if encoder.positions == "learned" and config.max_len > encoder.max_len:
        raise InputError(f"max_len {config.max_len}: the model has {encoder.max_len} learned positions; lower it")
    return config.max_len
