"""What trainings of compression are tested on."""

from __future__ import annotations

import random

import pytest

from terrazzo.tasks import Example
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.training import TaskWorkload

SOUNDS = {"cat": "animal", "dog": "animal", "river": "thing", "engine": "thing"}


@pytest.fixture
def workload(corpus):
    """Rows whose noun tells their class, and no model yet."""
    draw = random.Random(0)
    made = [Example(text=f"the {noun} hums at night", target=SOUNDS[noun]) for noun in draw.choices(list(SOUNDS), k=24)]
    task = LabelTask.learn(made)
    rows = LabelledRows.encode(task, made, corpus.tokenizer, 32)
    return TaskWorkload(task=task, tokenizer=corpus.tokenizer, max_len=32, batch_size=8, train=rows, dev=rows)
