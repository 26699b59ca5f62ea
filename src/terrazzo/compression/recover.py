"""What a cut model learns back from the whole one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from terrazzo.compression.distill import DistillConfig
from terrazzo.compression.distill_workload import DistillWorkload
from terrazzo.compression.goal import Effort
from terrazzo.compression.quantise import BitPlan
from terrazzo.compression.quantise.training import RoundedWorkload
from terrazzo.compression.subject import Subject
from terrazzo.config import config
from terrazzo.errors import InputError, RunError
from terrazzo.tasks.finetune import log_metrics
from terrazzo.tasks.finetune_config import FinetuneConfig, default_lr, run_config, steps_of
from terrazzo.tasks.model import TaskModel, load_task_model, save_task_model
from terrazzo.tasks.training import TaskWorkload, tokenizer_file
from terrazzo.train import Budget
from terrazzo.train import train as train_run
from terrazzo.train.workload import Workload

#: Bytes of what the teacher said that are kept at most.
_MOST_REMEMBERED = 4 * 2**30


@config
class RecoverConfig:
    """How a cut model is trained.

    Args:
        epochs: passes over the rows to learn from, unless `tokens` limits them.
        tokens: seen at most.
        lr: peak rate, as a multiple of fine-tuning's default.
        batch_size: documents of a step.
        distill: what is learnt from the dense model.
    """

    epochs: float = 2.0
    tokens: int | None = 600_000
    lr: float = 1.5
    batch_size: int = 32
    distill: DistillConfig = DistillConfig(outputs=1.0, hidden=1.0)

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.lr > 0 and self.batch_size >= 1 and (self.tokens is None or self.tokens >= 1)):
            raise InputError("epochs and lr above 0, batch_size and tokens from 1")


EFFORTS: Mapping[Effort, RecoverConfig] = {
    "minutes": RecoverConfig(),
    "hours": RecoverConfig(epochs=10.0, tokens=None),
}


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """The trained model, and how many steps that took."""

    model: TaskModel
    steps: int


def recover(
    subject: Subject,
    student: Callable[[], TaskModel],
    options: RecoverConfig,
    work: Path,
    threads: int | None,
    seed: int = 0,
    bits: BitPlan | None = None,
) -> Recovered:
    """Train what `student` makes on the rows to learn from, the dense model its teacher; goes on where it was stopped.

    Args:
        work: a folder for the run; a finished run in it is read, not repeated.
        bits: to train at.

    Raises:
        KeyboardInterrupt: stopped by a signal; the same call goes on.
        RunError: training diverged.
    """
    steps = _steps(subject, options)
    run = work / "run"
    if not (run / "model").is_dir():
        start = work / "student"
        if not start.is_dir():
            _save(subject, student(), start)
        tuning = FinetuneConfig(
            model=str(start),
            out=str(run),
            task=subject.task.kind,
            lr=(round(options.lr * _default_lr(subject), 6),),
            batch_size=options.batch_size,
            keep_best=False,
            device="cpu",
            threads=threads,
        )
        inner = TaskWorkload(
            task=subject.task,
            tokenizer=subject.loaded.tokenizer,
            train=subject.lessons,
            dev=subject.choose,
            max_len=subject.loaded.max_len,
            batch_size=options.batch_size,
            initial=load_task_model(start).model,  # what an interrupted run began with
        )
        workload: Workload = DistillWorkload(
            inner=inner, teacher=subject.model, options=options.distill, remembered=_remembered()
        )
        if bits is not None:
            workload = RoundedWorkload(workload, bits)
        chosen = run_config(tuning, len(subject.lessons.flat), tuning.lr[0], seed, str(run), Budget(steps=steps))
        resume = (run / "run.json").is_file()
        if train_run(chosen, workload=workload, resume=resume, hooks=log_metrics) is None:
            raise KeyboardInterrupt
    if not (run / "model").is_dir():
        raise RunError(f"{run}: ended without a model; remove {work} and start again")
    return Recovered(model=load_task_model(run / "model").model.eval(), steps=steps)


def _remembered() -> int:
    """A third of the memory that is free now; where the system does not tell, a twelfth of all."""
    page, known = os.sysconf("SC_PAGE_SIZE"), os.sysconf_names
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in known else os.sysconf("SC_PHYS_PAGES") // 4
    return min(_MOST_REMEMBERED, page * free // 3)


def _steps(subject: Subject, options: RecoverConfig) -> int:
    documents = subject.lessons.flat
    sized = FinetuneConfig(model="", out="", epochs=options.epochs, batch_size=options.batch_size)
    steps = steps_of(sized, len(documents))
    if options.tokens is None:
        return steps
    mean = sum(len(document.ids) for document in documents) / len(documents)
    return max(1, min(steps, int(options.tokens / (mean * min(options.batch_size, len(documents))))))


def _default_lr(subject: Subject) -> float:
    return default_lr(subject.encoder.config, FinetuneConfig(model="", out=""))


def _save(subject: Subject, model: TaskModel, folder: Path) -> None:
    with tokenizer_file(subject.loaded.tokenizer) as file:
        save_task_model(folder, model, file, max_len=subject.loaded.max_len)


__all__ = ["EFFORTS", "Effort", "RecoverConfig", "Recovered", "recover"]
