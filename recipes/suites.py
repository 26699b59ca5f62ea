"""Encoders fine-tuned on tasks of a suite: arms of one encoder a seed, finished ones never repeated."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.arms import spread
from recipes.runner import Context
from terrazzo.config import config, to_dict
from terrazzo.errors import InputError
from terrazzo.tasks.suites import TaskOutcome, read_suite, run_suite

#: Outcomes by arm and task, one a seed.
Outcomes = dict[str, dict[str, list[TaskOutcome]]]


@config
class Trial:
    """What encoders are tried on.

    Args:
        suite: its name.
        procedures: the tasks, each with what differs from the suite's quick profile.
        runs: fine-tunings of each encoder; encoder i takes the seeds from i * runs on.
    """

    suite: str
    procedures: dict[str, dict[str, Any]]
    runs: int = 1


@dataclass(frozen=True)
class Encoders:
    """An arm: an encoder for each seed, where the rows lie that it is tuned on, and the tasks."""

    models: Sequence[Path]
    data_root: Path
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    arm: str
    number: int
    encoders: Encoders
    trial: Trial
    out: Path


def tasks_root(trial: Trial, context: Context) -> Path:
    """The folder in which the data sets of the tasks lie.

    Raises:
        InputError: one of them is not there; the message says where the public gets it.
    """
    suite = read_suite(trial.suite)
    tasks = [suite.task(name) for name in trial.procedures]
    return [context.data(Path(task.train[0]).parts[0], task.download).parent for task in tasks][0]


def try_arms(
    trial: Trial, arms: Mapping[str, Encoders], out: Path, workers: int, log: Callable[[str], None]
) -> Outcomes:
    """Fine-tune every encoder of every arm, `workers` at a time (0: here, one by one), one thread each."""
    jobs = [
        _Job(arm, number, encoders, trial, out)
        for number in range(max(len(encoders.models) for encoders in arms.values()))
        for arm, encoders in arms.items()
        if number < len(encoders.models)
    ]
    found: dict[tuple[str, int], tuple[TaskOutcome, ...]] = {}
    for job, outcomes in _finished(jobs, workers):
        found[job.arm, job.number] = outcomes
        log(f"{job.arm}-{job.number}: " + ", ".join(f"{task.title} {100 * task.score:.1f}" for task in outcomes))
    return {
        arm: {
            task: [found[arm, number][place] for number in range(len(encoders.models))]
            for place, task in enumerate(encoders.tasks)
        }
        for arm, encoders in arms.items()
    }


def gain(name: str, outcomes: Outcomes, ours: str, theirs: str) -> dict[str, Any]:
    """Points between two arms on the tasks of both, in metrics that begin with `name`.

    For each task the gain of every seed, the size of their mean as `difference`, and as `spread` the widest range over
    the seeds of either arm: a smaller difference is no difference.
    """
    found: dict[str, Any] = {}
    for task in [task for task in outcomes[ours] if task in outcomes[theirs]]:
        a, b = points(outcomes[ours][task]), points(outcomes[theirs][task])
        gains = [x - y for x, y in zip(a, b, strict=True)]
        found[f"{name}_gain_{_metric(task)}"] = gains
        found[f"{name}_difference_{_metric(task)}"] = abs(fmean(gains))
        found[f"{name}_spread_{_metric(task)}"] = spread(a, b)
    return found


def scores(outcomes: Outcomes) -> dict[str, list[float]]:
    """Points of every arm on every task, as ARM_TASK."""
    return {
        f"{arm}_{_metric(task)}": points(list_) for arm, by_task in outcomes.items() for task, list_ in by_task.items()
    }


def described(outcomes: Outcomes) -> dict[str, Any]:
    """Every fine-tuning with its seed, rate, rows, procedure and metrics, and what others published."""
    return {
        arm: {
            task: {
                "runs": [to_dict(run) for outcome in by_seed for run in outcome.runs],
                "rows": dict(by_seed[0].rows),
                "procedure": to_dict(by_seed[0].procedure),
                "note": by_seed[0].note,
                "published": [to_dict(figure) for figure in by_seed[0].published],
                "seconds": [outcome.seconds for outcome in by_seed],
            }
            for task, by_seed in tasks.items()
        }
        for arm, tasks in outcomes.items()
    }


def points(outcomes: Sequence[TaskOutcome]) -> list[float]:
    """Scores of a hundred."""
    return [100 * outcome.score for outcome in outcomes]


def _metric(task: str) -> str:
    return task.replace("-", "_")


def _finished(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, tuple[TaskOutcome, ...]]]:
    if workers == 0:
        yield from ((job, _try(job)) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_try, job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _try(job: _Job) -> tuple[TaskOutcome, ...]:
    first = job.number * job.trial.runs
    result = run_suite(
        job.trial.suite,
        job.encoders.models[job.number],
        job.encoders.data_root,
        job.out / f"{job.arm}-{job.number}",
        tasks=job.encoders.tasks,
        seeds=tuple(range(first, first + job.trial.runs)),
        overrides={
            f"{task}.{name}": value for task in job.encoders.tasks for name, value in job.trial.procedures[task].items()
        },
        device="cpu",
        threads=1,
    )
    for task in result.missing:
        raise InputError(f"{job.encoders.data_root}: {', '.join(task.files)} missing: {task.download}")
    return result.tasks
