"""terrazzo's side of the fine-tuning benchmark: the loop over a labelled task, with the peer's settings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetuning_data import LabelledRows as Rows
from benchmarks.finetuning_data import Problem
from benchmarks.trainer_peer import BATCH_ROWS, EPOCHS, MAX_LEN, MODEL, WARMUP, WEIGHT_DECAY
from benchmarks.turns import Turns
from terrazzo.checkpoint import load_config, load_tokenizer
from terrazzo.data import StepPlan
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig, Schedule
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows, RowStream
from terrazzo.tasks.task import Example
from terrazzo.tasks.training import TaskStage, TaskWorkload
from terrazzo.train import Budget, FromFolder, RunConfig, Sampling, Stage, train
from terrazzo.train.workload import StageStart


class GivenOrder(RowStream):
    """Steps over rows in a given order."""

    def __init__(self, stream: RowStream, order: Sequence[int]) -> None:
        super().__init__(stream.documents, BATCH_ROWS, stream.seed)
        self.order_SB = np.asarray(order).reshape(-1, BATCH_ROWS)

    def step(self, t: int) -> StepPlan:
        """The rows of step `t`; the order begins anew after its end."""
        rows_B = self.order_SB[t % len(self.order_SB)]
        return StepPlan(pieces=rows_B, epochs=np.zeros_like(rows_B), lengths=self.lengths[rows_B])


@dataclass(frozen=True, kw_only=True)
class OrderedWorkload(TaskWorkload):
    """A labelled task whose stage reads the rows that another side reads."""

    order: Sequence[int]

    def begin(self, start: StageStart) -> TaskStage:
        """The stage, with its stream replaced."""
        stage = super().begin(start)
        stage.stream = GivenOrder(stage.stream, self.order)
        return stage


@dataclass
class Listener:
    """A hook that takes turns and keeps the last evaluation."""

    turns: Turns | None = None
    name: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    begun: bool = False

    def on_step(self, line: Mapping[str, Any]) -> None:
        """After each optimizer step."""
        if self.turns is not None:
            self.turns.stepped(self.name)

    def on_evaluation(self, line: Mapping[str, Any]) -> None:
        """After the evaluation at the end."""
        self.scores = dict(line)

    def on_message(self, text: str) -> None:
        """The loop's first remark comes just before its first step."""
        if self.turns is not None and not self.begun:
            self.begun = True
            self.turns.wait(self.name)

    def close(self) -> None:
        """Nothing is open."""


def workload_fields(problem: Problem) -> dict[str, Any]:
    """What `TaskWorkload` needs: the head is BERT's, a dense layer with tanh over the first token, as the peer's is."""
    tokenizer = load_tokenizer(MODEL, load_config(MODEL))
    pairs = isinstance(problem.train.texts[0], tuple)
    task = LabelTask(kind="pair" if pairs else "label", classes=problem.classes, pooling="cls", hidden=True)

    def encoded(rows: Rows) -> LabelledRows:
        return LabelledRows.encode(task, examples(problem, rows), tokenizer, MAX_LEN)

    return {
        "task": task,
        "tokenizer": tokenizer,
        "train": encoded(problem.train),
        "dev": encoded(problem.dev),
        "max_len": MAX_LEN,
        "batch_size": BATCH_ROWS,
    }


def examples(problem: Problem, rows: Rows) -> list[Example]:
    """The rows as the package reads them."""
    pairs = [text if isinstance(text, tuple) else (text, None) for text in rows.texts]
    return [
        Example(text=text, other=other, target=problem.classes[label])
        for (text, other), label in zip(pairs, rows.labels, strict=True)
    ]


def run_config(out: Path, seed: int, learning_rate: float, steps: int) -> RunConfig:
    """The peer's optimizer, schedule and clipping, fp32; one evaluation, at the end."""
    stage = Stage(
        name="finetune",
        model=FromFolder(path=str(MODEL)),
        objective=SupervisedConfig(),
        sampling=Sampling(workers=0),
        optimizer=AdamWConfig(
            lr=learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=WEIGHT_DECAY,
            decouple_lr=False,
            decay_norm_and_bias=False,
        ),
        schedules={"lr": Schedule(warmup=WARMUP, final=0.0)},
        budget=Budget(steps=steps),
        clip_norm=1.0,
    )
    endless = 10**9
    return RunConfig(
        data="",
        out=str(out),
        stages=(stage,),
        seed=seed,
        precision="fp32",
        checkpoint_every=endless,
        eval_every=endless,
        divergence=float(endless),
    )


def our_turns(name: str, problem: Problem, order: Sequence[int], turns: Turns) -> None:
    """Train over the rows of `order` once, in turns."""
    steps = len(order) // BATCH_ROWS
    workload = OrderedWorkload(order=order, **workload_fields(problem))
    with tempfile.TemporaryDirectory() as folder:
        listener = Listener(turns, name)
        train(run_config(Path(folder) / "run", 0, 1e-4, steps), workload=workload, hooks=lambda _: [listener])


def our_accuracy(problem: Problem, seed: int, learning_rate: float) -> float:
    """Train three epochs; the share of dev rows that get their class."""
    steps = EPOCHS * -(-len(problem.train) // BATCH_ROWS)
    listener = Listener()
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(Path(folder) / "run", seed, learning_rate, steps)
        train(config, workload=TaskWorkload(**workload_fields(problem)), hooks=lambda _: [listener])
    return float(listener.scores["accuracy"])
