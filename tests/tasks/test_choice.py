"""Tasks by kind: learned from rows, with given options, through JSON and back."""

import dataclasses
import json

import pytest

from terrazzo.config import config, from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.tasks import Example, Span
from terrazzo.tasks.choice import TASKS, TaskConfig, build_task

ROWS = [Example(text=f"row {i}", target="ab"[i % 2], problem="pq"[i % 4 // 2]) for i in range(8)]
OF_KIND = {
    "label": ROWS,
    "pair": [dataclasses.replace(row, other="x") for row in ROWS],
    "regression": [dataclasses.replace(row, target=float(i)) for i, row in enumerate(ROWS)],
    "tag": [dataclasses.replace(row, target=("O", "B-x"), words=((0, 3), (4, 5))) for row in ROWS],
    "span": [dataclasses.replace(row, other="which?", target=(Span(start=0, end=3, label=""),)) for row in ROWS],
    "multi": ROWS,
}


@config
class OneTask:
    task: TaskConfig


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_survives_json(kind):
    task = build_task(kind, OF_KIND[kind], {"dropout": 0})
    assert (task.kind, task.dropout) == (kind, 0.0)
    assert from_dict(OneTask, json.loads(json.dumps({"task": to_dict(task)}))).task == task


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("lable", {}, "task 'lable': did you mean 'label'"),
        ("label", {"poolin": "cls"}, "'poolin' is not one of a label task: did you mean 'pooling'"),
        ("label", {"pooling": "max"}, "task option pooling: .*'mean'"),
        ("regression", {"dropout": "much"}, "task option dropout: .*number.*'much'"),
    ],
)
def test_what_is_wrong_is_named(kind, options, message):
    with pytest.raises(InputError, match=message):
        build_task(kind, ROWS, options)
