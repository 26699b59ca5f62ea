"""The tasks by kind: the one place that a new one is added to."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.tasks.task import Example, Task

#: Every kind that the command line knows; "label" and "pair" are one class, with one text and with two.
TASKS: dict[str, Any] = {
    "label": LabelTask,
    "pair": LabelTask,
    "regression": RegressionTask,
    "tag": TagTask,
    "span": SpanTask,
    "multi": MultiTask,
}

#: Any of them, as a config field told apart by `kind`.
TaskConfig = Annotated[LabelTask | RegressionTask | TagTask | SpanTask | MultiTask, Field(discriminator="kind")]


def build_task(kind: str, examples: Sequence[Example], options: Mapping[str, Any] | None = None) -> Task:
    """The task of a kind that training rows describe: its classes, and what balanced weights and scales need.

    Args:
        options: fields of the task that are given, not learned: {"pooling": "cls", "metric": "mcc"}.

    Raises:
        InputError: an unknown kind or option, a value that it refuses, or rows that make no task.
    """
    if kind not in TASKS:
        raise InputError(f"task {kind!r}: {nearest(kind, TASKS)}")
    task_class = TASKS[kind]
    fixed = {"kind": kind} if task_class is LabelTask else {}
    task: Task = task_class.learn(examples, **fixed, **_checked(task_class, kind, options or {}))
    return task


def _checked(task_class: type, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the types that the fields have."""
    hints = typing.get_type_hints(task_class, include_extras=True)
    known = {field.name for field in dataclasses.fields(task_class)} - {"kind"}
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise InputError(f"task option {name!r} is not one of a {kind} task: {nearest(name, known)}")
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"task option {name}: {error.errors()[0]['msg']} (got {value!r})") from None
    return checked
