"""A further problem, or further classes of one, for a model that already solves some."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from terrazzo.errors import InputError
from terrazzo.tasks.heads import PooledHead
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.multi import MultiTask, Problem


def extend_task(task: MultiTask, problems: Mapping[str, Sequence[str]] | MultiTask) -> MultiTask:
    """The task with the classes of further problems; known ones keep their places, new ones come after them.

    Args:
        problems: classes by problem; or the task of new training rows, whose counts then replace the old.
    """
    learned: dict[str, Problem] = {}
    if isinstance(problems, MultiTask):
        learned = {problem.name: problem for problem in problems.problems}
        problems = {name: problem.classes for name, problem in learned.items()}
    known = {p.name: p for p in task.problems}
    merged = []
    for name in [*known, *(name for name in problems if name not in known)]:
        old = known[name].classes if name in known else ()
        classes = (*old, *(label for label in problems.get(name, ()) if label not in old))
        merged.append(Problem(name=name, classes=classes, counts=_counts(classes, known.get(name), learned.get(name))))
    return dataclasses.replace(task, problems=tuple(merged))


def extend_task_model(
    model: TaskModel, problems: Mapping[str, Sequence[str]] | MultiTask, freeze: bool = False
) -> TaskModel:
    """The model with outputs for further problems: what it knew keeps its weights, the new is drawn afresh.

    The encoder is shared with `model`, not copied. With the encoder as it was, the logits of a problem that got no new
    class keep their bits.

    Args:
        freeze: only problems that are new or have new classes go on learning, so that the others stay as they are.

    Raises:
        InputError: a model of another task.
    """
    if not isinstance(model.task, MultiTask):
        raise InputError(f"a {model.task.kind} model has no problems to add to: fine-tune it with --task multi")
    task = extend_task(model.task, problems)
    extended = TaskModel(model.encoder, task).to(next(model.parameters()).device)
    old, new = model.head, extended.head
    assert isinstance(old, PooledHead) and isinstance(new, PooledHead)
    if old.dense is not None and new.dense is not None:
        new.dense.load_state_dict(old.dense.state_dict())
    places = {problem.name: index for index, problem in enumerate(model.task.problems)}
    if freeze:
        extended.requires_grad_(False)
    for problem, out in zip(task.problems, new.out, strict=True):
        index = places.get(problem.name)
        before = () if index is None else model.task.problems[index].classes
        if index is not None:
            _copy_rows(old.out[index], out, len(before))
        out.requires_grad_(not freeze or len(problem.classes) > len(before))
    return extended.train(model.training)


@torch.no_grad()
def _copy_rows(source: nn.Module, target: nn.Module, rows: int) -> None:
    """Classes keep their places within a problem, so the first rows are theirs."""
    assert isinstance(source, nn.Linear) and isinstance(target, nn.Linear)
    target.weight[:rows] = source.weight
    target.bias[:rows] = source.bias


def _counts(classes: Sequence[str], known: Problem | None, learned: Problem | None) -> tuple[int, ...]:
    """Training rows of each class: the new rows' where there are some, else the old."""
    source = learned or known
    if source is None or not source.counts:
        return ()
    counts = dict(zip(source.classes, source.counts, strict=True))
    return tuple(counts.get(label, 0) for label in classes)
