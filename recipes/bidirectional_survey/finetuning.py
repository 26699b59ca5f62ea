"""Fine-tune an encoder on one task and test it once, at the end: no row of the test decides anything."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from recipes.bidirectional_survey.rows import Rows
from terrazzo.config import config
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig, Schedule
from terrazzo.tasks.choice import build_task
from terrazzo.tasks.heads import Pooling
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.training import TaskWorkload
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, train
from terrazzo.train.metrics import MetricsLog, read_metrics
from terrazzo.train.stage import FromFolder


@config
class Tuning:
    """How every arm is fine-tuned; none has a learning rate of its own.

    Args:
        epochs: passes over the training rows.
        batch_size: rows of a step.
    """

    optimizer: AdamWConfig = AdamWConfig(lr=5e-4)
    epochs: float = 3.0
    batch_size: int = 16
    max_len: int = 128


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """One run: an encoder, a task, a pooling and a seed (of the head's first weights, dropout and the rows' order).

    Args:
        model: a pretrained folder, or the shape of an untrained encoder.
        run: the run folder.
    """

    model: FromFolder | Init
    tokenizer: Path
    rows: Rows
    pooling: Pooling
    tuning: Tuning
    seed: int
    run: Path


def finetuning(work: Path, name: str, **fields: Any) -> Finetuning:
    """A run in a folder of `work` named after all that decides it."""
    identity = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:10]
    return Finetuning(run=work / "finetuned" / f"{name}-{fields['seed']}-{identity}", **fields)


def accuracy(wanted: Finetuning) -> float:
    """Train unless it is done; returns the share of test rows that are right."""
    if not (wanted.run / "model").is_dir():
        shutil.rmtree(wanted.run, ignore_errors=True)
        work = workload(wanted)
        if train(run_config(wanted, work), workload=work, hooks=_metrics) is None:
            raise KeyboardInterrupt
    lines = read_metrics(wanted.run / "metrics.jsonl")
    return float([line["accuracy"] for line in lines if "score" in line][-1])


def workload(wanted: Finetuning) -> TaskWorkload:
    """The task, learned from the training rows, with both files tokenized."""
    rows, tuning, tokenizer = wanted.rows, wanted.tuning, Tokenizer.from_file(str(wanted.tokenizer))
    train_rows, test_rows = (read_examples(file, rows.kind) for file in (rows.train, rows.test))
    task = build_task(rows.kind, train_rows, {"pooling": wanted.pooling})
    encoded = [LabelledRows.encode(task, part, tokenizer, tuning.max_len) for part in (train_rows, test_rows)]
    return TaskWorkload(
        task=task,
        tokenizer=tokenizer,
        train=encoded[0],
        dev=encoded[1],
        max_len=tuning.max_len,
        batch_size=tuning.batch_size,
    )


def run_config(wanted: Finetuning, work: TaskWorkload) -> RunConfig:
    """A run of whole epochs with one thread, evaluated when it ends."""
    tuning = wanted.tuning
    stage = Stage(
        name="finetune",
        model=wanted.model,
        objective=SupervisedConfig(),
        sampling=Sampling(workers=0),
        optimizer=tuning.optimizer,
        schedules={"lr": Schedule(warmup=0.1, final=0.0)},
        budget=Budget(steps=max(1, round(tuning.epochs * len(work.train.flat) / tuning.batch_size))),
    )
    return RunConfig(
        data=str(wanted.rows.train),
        out=str(wanted.run),
        stages=(stage,),
        seed=wanted.seed,
        threads=1,
        checkpoint_every=10**9,
        eval_every=10**9,
    )


def _metrics(folder: Path) -> list[MetricsLog]:
    return [MetricsLog(folder / "metrics.jsonl")]
