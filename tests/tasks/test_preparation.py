from __future__ import annotations

import dataclasses

import pytest
import torch

from terrazzo.checkpoint import save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.tasks import Example
from terrazzo.tasks.finetune import finetune
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.preparation import hold_out, prepare
from terrazzo.testing import TINY_MODEL
from terrazzo.train import Budget

ROWS = [Example(text=f"text {n}", target="ab"[n % 2], where=f"line {n}") for n in range(40)]


@pytest.fixture
def asked(corpus, tmp_path):
    config = EncoderConfig(vocab_size=corpus.vocab_size, **TINY_MODEL)
    torch.manual_seed(0)
    model = save_model(tmp_path / "model", Encoder(config), corpus.path / "tokenizer.json")
    return FinetuneConfig(model=str(model), out=str(tmp_path / "out"))


def test_a_run_too_short_to_learn_is_said_to_be(asked):
    (warning,) = prepare(asked, ROWS[:33], ROWS[33:]).understanding.warnings
    assert warning == "3 passes over 33 rows: only 3 steps, too few to learn much; try --epochs 20 --patience 3"
    for enough in ({"epochs": 45}, {"batch_size": 2}, {"budget": Budget(steps=5)}):
        assert prepare(dataclasses.replace(asked, **enough), ROWS[:33], ROWS[33:]).understanding.warnings == ()


def test_a_further_problem_cannot_be_read_otherwise_than_those_before(asked):
    rows = [dataclasses.replace(row, problem="first") for row in ROWS]
    first = finetune(dataclasses.replace(asked, task="multi", seeds=1, epochs=1), train=rows[:33], eval=rows[33:])
    more = [dataclasses.replace(row, problem="second") for row in ROWS]
    config = dataclasses.replace(asked, model=str(first.model), task="multi", options={"pooling": "cls"})
    with pytest.raises(InputError, match="options.pooling=cls: .* share a head with mean; leave it out"):
        prepare(config, more[:33], more[33:])
    told = dataclasses.replace(config, options={"pooling": "mean"})
    assert len(prepare(told, more[:33], more[33:]).workload.task.problems) == 2


def test_rows_too_few_to_hold_some_out_are_told_apart_from_one_class(asked):
    with pytest.raises(InputError, match="a tenth held out leaves rows of one class; give more rows"):
        prepare(asked, ROWS[:2])
    with pytest.raises(InputError, match="all 18 rows have the class 'a'"):
        prepare(asked, ROWS[::2])


def test_texts_that_differ_in_case_alone_are_held_out_together():
    again = [dataclasses.replace(row, text=row.text.upper() + " ") for row in ROWS]
    train, held = hold_out([*ROWS, *again])
    assert len(held) == 8 and not {e.text.lower().strip() for e in train} & {e.text.lower().strip() for e in held}
