"""Fine-tuning: rows understood, every learning rate trained with every seed, the best model kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from terrazzo.errors import DivergedError
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr, run_config, steps_of
from terrazzo.tasks.finetune_record import (
    FailedRun,
    FinetuneResult,
    RunOutcome,
    RunScore,
    begin_folder,
    begun_budget,
    best_evaluation,
    check_folder,
    chosen_before,
    keep_model,
    prune,
    read_outcome,
    result_of,
    run_folder,
    write_outcome,
)
from terrazzo.tasks.preparation import Prepared, prepare
from terrazzo.tasks.task import Example
from terrazzo.tasks.understood import Understanding
from terrazzo.train import Budget, RunConfig
from terrazzo.train import train as train_run
from terrazzo.train.distributed import Ranks, joined
from terrazzo.train.hardware import compute_dtype
from terrazzo.train.hooks import Hook
from terrazzo.train.metrics import MetricsLog
from terrazzo.train.state import latest_checkpoint

#: Files of a run that stay when its weights go.
LOGS = ("run.json", "metrics.jsonl", "result.json")
Hooks = Callable[[RunConfig], Callable[[Path], Sequence[Hook]]]


def finetune(
    config: FinetuneConfig,
    *,
    train: Sequence[Example] | None = None,
    eval: Sequence[Example] | None = None,
    hooks: Hooks | None = None,
    on_understood: Callable[[Understanding], None] | None = None,
    on_run: Callable[[RunOutcome], None] | None = None,
) -> FinetuneResult | None:
    """Fine-tune a model on labelled rows and write OUT/model and OUT/result.json.

    The same call goes on where an earlier one stopped: finished runs are not repeated, an interrupted one resumes, and
    more seeds or learning rates add runs. A budget in seconds is for all runs together; each gets an equal share of
    what is left when it begins, the time to write its model taken off. A run that diverges counts as failed and the
    others go on.

    Args:
        train, eval: rows instead of the files that the config names.
        hooks: makes a run's listeners, as `terrazzo.train.default_hooks` does; None writes metrics.jsonl alone.
        on_understood: is told what was understood of the rows, before anything is trained.
        on_run: is told what each run came to as it ends.

    Returns:
        None after SIGTERM or Ctrl-C; the same call then goes on.

    Raises:
        InputError: rows, model or folder that cannot be used; nothing has been trained then.
        DivergedError: every run did.
        RunError: a run cannot go on for another reason: a full disk, a lost rank.
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_folder(config)
    with joined(config.device) as ranks:
        prepared = prepare(config, train, eval)
        if on_understood is not None and ranks.is_main:
            on_understood(prepared.understanding)
        tuning = Tuning(config, prepared, ranks, hooks or (lambda _: log_metrics), time.perf_counter() - begin)
        tuning.check()
        begin_folder(config, prepared.workload, prepared.understanding, ranks)
        for lr, seed in tuning.runs:
            outcome = tuning.run(lr, seed)
            if outcome is None:
                return None
            if on_run is not None and ranks.is_main:
                on_run(outcome)
        return tuning.finish()


class Tuning:
    """The runs of a fine-tuning.

    Args:
        seconds: already spent on the rows.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        prepared: Prepared,
        ranks: Ranks,
        hooks: Hooks,
        seconds: float,
    ) -> None:
        self.config, self.workload, self.ranks, self.hooks = config, prepared.workload, ranks, hooks
        self.rates = config.lr or (default_lr(prepared.encoder, config),)
        self.runs = [(lr, seed) for lr in self.rates for seed in range(config.seed, config.seed + config.seeds)]
        self.scores: dict[tuple[float, int], RunScore] = {}
        self.failed: dict[tuple[float, int], FailedRun] = {}
        self.seconds, self.closing = seconds, 0.0

    def check(self) -> None:
        """Refuse what the runs would stumble over, before the folder is made.

        Raises:
            InputError: naming the field and the mend.
        """
        lr, seed = self.runs[0]
        budget = self.config.budget or Budget(steps=1)
        first = run_config(self.config, len(self.workload.train.flat), lr, seed, self.config.out, budget)
        self.workload.check(first, self.ranks, compute_dtype(self.config.precision, self.ranks.device))

    def run(self, lr: float, seed: int) -> RunOutcome | None:
        """Train a run to its end, unless an earlier call did; None if a signal ended it before."""
        folder = run_folder(self.config, lr, seed)
        outcome = read_outcome(folder) or self._train(folder, lr, seed)
        if outcome is None:
            return None
        if isinstance(outcome, FailedRun):
            self.failed[lr, seed] = outcome
        else:
            self.scores[lr, seed] = outcome
        self.seconds += outcome.seconds
        self._prune(lr)
        return outcome

    def finish(self) -> FinetuneResult | None:
        """Choose the learning rate, leave its best seed's model, and write what came out.

        Raises:
            DivergedError: no run has a score.
        """
        if not self.scores:
            raise self._all_failed()
        result = result_of(self.config, list(self.scores.values()), list(self.failed.values()), self.seconds)
        lr, seed = result.lr, result.seed
        folder = run_folder(self.config, lr, seed)
        if chosen_before(self.config) != (lr, seed) and not (folder / "model").is_dir():
            # An earlier call chose another model and left this one's score alone: the same run gives it again.
            if self.ranks.is_main:
                (folder / "result.json").unlink()
                prune(folder, keep=())
            self.ranks.barrier()
            again = self.run(lr, seed)
            if again is None:
                return None
            if isinstance(again, FailedRun):
                raise DivergedError(again.error, f"{folder} ended without this once: choose another --out")
        if self.ranks.is_main:
            keep_model(self.config, result, folder)
        self.ranks.barrier()
        if not self.config.keep_runs and self.ranks.is_main:
            for rate, number in self.runs:
                prune(run_folder(self.config, rate, number), keep=LOGS)
        return result

    def _train(self, folder: Path, lr: float, seed: int) -> RunOutcome | None:
        begin, checkpoint = time.perf_counter(), latest_checkpoint(folder)
        before = checkpoint.counters.seconds if checkpoint else 0.0
        chosen = self._run_config(folder, lr, seed)
        resume = (folder / "run.json").is_file()
        outcome: RunOutcome
        try:
            if train_run(chosen, workload=self.workload, resume=resume, hooks=self.hooks(chosen)) is None:
                return None
            outcome = self._score(folder, lr, seed, before + time.perf_counter() - begin)
        except DivergedError as error:
            outcome = FailedRun(lr=lr, seed=seed, error=error.what, seconds=before + time.perf_counter() - begin)
        if self.ranks.is_main:
            write_outcome(folder, outcome)
        self.ranks.barrier()
        return outcome

    def _all_failed(self) -> DivergedError:
        first = next(iter(self.failed.values()))
        return DivergedError(
            f"every run diverged; the first, at learning rate {first.lr:g} with seed {first.seed}, at {first.error}",
            "Lower the rates (--lr), or lengthen the warm-up in another --out (--set warmup=0.2)",
        )

    def _run_config(self, folder: Path, lr: float, seed: int) -> RunConfig:
        documents = len(self.workload.train.flat)
        budget = self.config.budget or Budget(steps=steps_of(self.config, documents))
        if budget.seconds is not None:
            budget = begun_budget(folder) or Budget(seconds=self._share(budget.seconds))
        return run_config(self.config, documents, lr, seed, str(folder), budget)

    def _share(self, seconds: float) -> float:
        """Seconds of training for the next run, the same on every rank; at least one."""
        left = (seconds - self.seconds) / (len(self.runs) - len(self.scores) - len(self.failed)) - self.closing
        (agreed,) = self.ranks.sum(left if self.ranks.is_main else 0.0)
        return round(max(1.0, agreed), 3)

    def _score(self, folder: Path, lr: float, seed: int, seconds: float) -> RunScore:
        line, counters = best_evaluation(folder, self.config.keep_best), latest_checkpoint(folder)
        trained = counters.counters.seconds if counters else seconds
        self.closing = max(0.0, seconds - trained)
        figures = {name: value for name, value in line.items() if isinstance(value, float) and math.isfinite(value)}
        figures = {name: value for name, value in figures.items() if name not in ("seconds", "score")}
        return RunScore(
            lr=lr,
            seed=seed,
            metric=line["metric"],
            score=line["score"],
            metrics=figures,
            step=line["step"],
            seconds=seconds,
        )

    def _prune(self, lr: float) -> None:
        """Leave the weights of the best seed so far alone, so that a grid needs little disk."""
        if self.config.keep_runs or not self.ranks.is_main:
            return
        scores = {seed: score.score for (rate, seed), score in self.scores.items() if rate == lr}
        best = max(scores, key=lambda seed: scores[seed], default=None)
        for rate, seed in (*self.scores, *self.failed):
            if rate == lr:
                prune(run_folder(self.config, lr, seed), keep=(*LOGS, *(("model",) if seed == best else ())))


def log_metrics(run: Path) -> list[MetricsLog]:
    """Listeners that write metrics.jsonl and print nothing."""
    checkpoint = latest_checkpoint(run)
    return [MetricsLog(run / "metrics.jsonl", checkpoint.counters.total_steps if checkpoint else 0)]
