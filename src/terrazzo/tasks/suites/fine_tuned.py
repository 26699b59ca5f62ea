"""A task of a suite fine-tuned: learning rate by rows that are held out of training, then every seed on all of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from terrazzo.checkpoint import load_config
from terrazzo.errors import DivergedError, InputError
from terrazzo.tasks.finetune import finetune
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.seeds import spread_of
from terrazzo.tasks.suites.manifest import Procedure, SuiteTask
from terrazzo.tasks.suites.result import SeedRun, TaskOutcome
from terrazzo.tasks.suites.sources import CHOICE_SHARE, TaskRows, split_rows, task_rows
from terrazzo.tasks.suites.zero_shot import outcome_of
from terrazzo.tasks.task import Example

#: Rows that a run's own evaluations see; they choose nothing, and the suite judges all rows itself at the end.
_LOOP_ROWS = 32


def run_fine_tuned(
    task: SuiteTask,
    procedure: Procedure,
    model: Path,
    data_root: Path,
    out: Path,
    *,
    machine: Mapping[str, Any],
    keep_model: bool,
) -> TaskOutcome:
    """Fine-tune a task with every seed and judge each seed's last model.

    Args:
        machine: fields of RunConfig: device, threads.
        keep_model: leave the first seed's task folder as OUT/model, for tasks that start from it.

    Raises:
        InputError: rows or a model that cannot be used.
        DivergedError: every learning rate diverged, or the chosen one with some seed.
    """
    rows = task_rows(task, procedure, data_root, out)
    tuning = _Tuning(task, procedure, model, out, dict(machine))
    choice, diverged = tuning.choose(rows)
    lr = max(choice, key=lambda rate: choice[rate]) if choice else tuning.only_rate()
    runs = [tuning.run(rows, lr, seed) for seed in procedure.seeds]
    if keep_model:
        shutil.rmtree(out / "model", ignore_errors=True)
        tuning.folder(lr, procedure.seeds[0]).joinpath("model").rename(out / "model")
    for seed in procedure.seeds:
        shutil.rmtree(tuning.folder(lr, seed), ignore_errors=True)
    seeds = spread_of([run.score for run in runs])
    counts = {"train": len(rows.train), **{part: len(judged) for part, judged in rows.evaluate.items()}}
    return replace(
        outcome_of(task, procedure, seeds.mean, counts),
        spread=seeds.std or 0.0,
        low=seeds.low,
        high=seeds.high,
        runs=tuple(runs),
        choice={f"{rate:g}": score for rate, score in choice.items()},
        note="; ".join(filter(None, (task.note, rows.note, diverged))),
    )


@dataclass(frozen=True)
class _Tuning:
    """The fine-tunings of one task."""

    task: SuiteTask
    procedure: Procedure
    model: Path
    out: Path
    machine: Mapping[str, Any]

    def folder(self, lr: float, seed: int, name: str = "") -> Path:
        return self.out / f"{name}lr-{lr:g}-seed-{seed}"

    def choose(self, rows: TaskRows) -> tuple[dict[float, float], str]:
        """Score of each of several learning rates, by the first seed, on a part of the training rows; which diverged.

        Raises:
            DivergedError: all did.
        """
        if len(self.procedure.lr) < 2:
            return {}, ""
        train, judged = split_rows(rows.train, CHOICE_SHARE, "choice")
        apart = TaskRows(train=train, evaluate={"held out": judged})
        seed = self.procedure.seeds[0]
        scores, diverged = {}, {}
        for lr in self.procedure.lr:
            try:
                scores[lr] = self.run(apart, lr, seed, "choice-").score
            except DivergedError as error:
                diverged[lr] = error
        if not scores:
            raise next(iter(diverged.values()))
        for lr in self.procedure.lr:
            shutil.rmtree(self.folder(lr, seed, "choice-"))
        return scores, f"training diverged at {', '.join(f'{lr:g}' for lr in diverged)}" if diverged else ""

    def only_rate(self) -> float:
        """The rate where no grid is given: the procedure's, or what suits the model's width."""
        if self.procedure.lr:
            return self.procedure.lr[0]
        return default_lr(load_config(self.model), self._config(1e-5, 0, self.out))

    def run(self, rows: TaskRows, lr: float, seed: int, name: str = "") -> SeedRun:
        """Fine-tune with one learning rate and seed; the last model is judged, whatever came before it."""
        folder = self.folder(lr, seed, name)
        judged = next(iter(rows.evaluate.values()))
        if finetune(self._config(lr, seed, folder), train=rows.train, eval=judged[:_LOOP_ROWS]) is None:
            raise KeyboardInterrupt
        scores = self._scores(folder, rows.evaluate)
        picked = [values[metric] for values in scores.values() for metric in self.task.metrics]
        return SeedRun(seed=seed, lr=lr, score=fmean(picked), scores=scores)

    def _config(self, lr: float, seed: int, folder: Path) -> FinetuneConfig:
        chosen, encoder = self.procedure, load_config(self.model)
        limit = encoder.max_len if encoder.positions == "learned" else chosen.max_len
        return FinetuneConfig(
            model=str(self.model),
            out=str(folder),
            task=self.task.kind,
            seeds=1,
            seed=seed,
            lr=(lr,),
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            max_len=min(chosen.max_len, limit),
            warmup=chosen.warmup,
            weight_decay=chosen.weight_decay,
            keep_best=False,
            **self.machine,
        )

    def _scores(self, model: Path, parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, float]]:
        loaded = load_task_model(model)
        predictor = Predictor(loaded.model, loaded.tokenizer, loaded.max_len)
        scores = {}
        for part, examples in parts.items():
            values = loaded.model.task.score(examples, predictor.predict(examples)).values
            absent = [metric for metric in self.task.metrics if metric not in values]
            if absent:
                raise InputError(
                    f"task {self.task.name}: metrics {absent}: a {self.task.kind} task has {sorted(values)}"
                )
            # a correlation with predictions that are all alike does not exist, and is worth nothing
            scores[part] = {name: value if math.isfinite(value) else 0.0 for name, value in values.items()}
        return scores
