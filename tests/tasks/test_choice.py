"""Tasks by kind: learned from rows, with given options, through JSON and back."""

import dataclasses
import json

import pytest

from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.tasks import Example
from terrazzo.tasks.choice import TASKS, TaskConfig, build_task

ROWS = [Example(text=f"row {i}", target="ab"[i % 2], problem="pq"[i % 4 // 2]) for i in range(8)]
OF_KIND = {
    "label": ROWS,
    "pair": [dataclasses.replace(row, other="x") for row in ROWS],
    "regression": [dataclasses.replace(row, target=float(i)) for i, row in enumerate(ROWS)],
    "multi": ROWS,
}


@pytest.mark.parametrize("kind", OF_KIND)
def test_a_task_survives_json(kind):
    task = build_task(kind, OF_KIND[kind], {"pooling": "cls", "dropout": 0})
    assert (task.kind, task.pooling, task.dropout) == (kind, "cls", 0.0)
    assert from_dict(TaskConfig, json.loads(json.dumps(to_dict(task)))) == task


def test_every_kind_is_in_the_union():
    for kind, task_class in TASKS.items():
        assert kind in dataclasses.fields(task_class)[0].type


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
