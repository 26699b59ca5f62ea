"""Several problems on one encoder: own classes alone, further problems later."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks import Example, Result, TaskModel
from terrazzo.tasks.batches import collate
from terrazzo.tasks.extend import extend_task, extend_task_model
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.metrics import bootstrap
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.testing import tiny_texts

TEXTS = tiny_texts(30)
CONFIG = mosaicbert("tiny", 128, width=32, num_heads=2, mlp_width=48, init_std=0.3)
CLASSES = {"bank": ("no", "yes"), "travel": ("book", "no", "yes")}
ROWS = [
    Example(text=text, problem=problem, target=CLASSES[problem][i // 3 % len(CLASSES[problem])])
    for i, text in enumerate(TEXTS)
    for problem in [("bank", "travel")[i % 3 == 0]]
]
TASK = MultiTask.learn(ROWS)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: TEXTS, "wordpiece", 128, shrink=True)


@pytest.fixture
def batch(tokenizer):
    return collate([row[0] for row in TASK.encode_many(ROWS, tokenizer, 40)])


def test_labels_of_the_same_name_are_classes_of_their_own(batch):
    assert [(p.name, p.classes) for p in TASK.problems] == [("bank", ("no", "yes")), ("travel", ("book", "no", "yes"))]
    assert [sum(p.counts) for p in TASK.problems] == [20, 10]
    flat = [(p.name, name) for p in TASK.problems for name in p.classes]
    assert [flat[i] for i in batch.labels_B.tolist()] == [(row.problem, row.target) for row in ROWS]
    assert MultiTask.learn(ROWS[::-1]) == TASK


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_own_loss_is_the_sum_of_what_single_tasks_lose(batch, weights):
    options = SupervisedConfig(class_weights=weights, focal_gamma=1.0, label_smoothing=0.1)
    outputs = torch.randn(30, 5)
    expected, correct = torch.zeros(()), 0
    for k, columns in ((0, slice(0, 2)), (1, slice(2, 5))):
        chosen, problem = batch.problems_B == k, TASK.problems[k]
        alone = LabelTask(classes=problem.classes, counts=problem.counts)
        part = dataclasses.replace(
            collate_like(batch, int(chosen.sum())), labels_B=batch.labels_B[chosen] - columns.start
        )
        loss = alone.loss(outputs[chosen, columns], part, options)
        expected, correct = expected + loss.sum, correct + loss.logs["correct"]
    found = TASK.loss(outputs, batch, options)
    assert_close(found.sum, expected)
    assert found.weight == 30 and found.logs["correct"] == correct


def collate_like(batch, rows):
    return dataclasses.replace(batch, tokens_T=batch.tokens_T[:rows], lengths=(1,) * rows, token_types_T=None)


def test_all_classes_compete_where_asked_and_weights_are_named_by_problem(batch):
    outputs = torch.randn(30, 5)
    found = TASK.loss(outputs, batch, SupervisedConfig(problem_loss="all"))
    assert_close(found.sum, torch.nn.functional.cross_entropy(outputs, batch.labels_B, reduction="sum"))
    heavier = TASK.loss(outputs, batch, SupervisedConfig(class_weights={"travel/yes": 3.0}))
    assert heavier.sum != TASK.loss(outputs, batch, SupervisedConfig()).sum
    with pytest.raises(InputError, match="'yes' is not a class: did you mean 'bank/yes'|'travel/yes'"):
        TASK.loss(outputs, batch, SupervisedConfig(class_weights={"yes": 3.0}))


def test_answers_are_of_the_rows_own_problem(batch, tokenizer):
    documents = TASK.encode_many(ROWS[:2], tokenizer, 40)
    outputs = np.array([9, 8, 1, 3, 2], dtype=np.float32)
    travel, bank = (TASK.decode(row, d, [outputs]) for row, d in zip(ROWS[:2], documents, strict=True))
    assert (travel.label, list(travel.probabilities)) == ("no", ["no", "yes", "book"])
    assert (bank.label, list(bank.probabilities)) == ("no", ["no", "yes"])
    expected = torch.tensor([1.0, 3.0, 2.0]).softmax(0)
    assert list(travel.probabilities.values()) == pytest.approx(sorted(expected.tolist(), reverse=True))


def test_the_score_is_the_mean_over_problems():
    said = [Result(label=row.target) for row in ROWS]
    said[0], said[3], said[1] = Result(label="nothing"), Result(error="no text"), Result(label="nothing")
    found = TASK.score(ROWS, said)
    own = {"accuracy/bank": 19 / 20, "accuracy/travel": 8 / 10}
    assert found.values == pytest.approx({"accuracy": (19 / 20 + 8 / 10) / 2, "all_rows": 27 / 30, **own})
    interval = bootstrap(TASK.main_metric(), ROWS, said, samples=100)
    assert interval.value == pytest.approx(found.value) and interval.low < interval.value < interval.high
    assert TASK.score(ROWS[:1], said[:1]).values == {"accuracy": 0.0, "all_rows": 0.0, "accuracy/travel": 0.0}


def test_bad_rows_name_what_is_known(tokenizer):
    rows = [
        Example(text="a", problem="bnak"),
        Example(text="a"),
        Example(text="a", problem="bank", target="book"),
        Example(text="a", problem="bank"),
    ]
    unknown, none, stranger, good = TASK.encode_many(rows, tokenizer, 40)
    assert unknown.message == "problem 'bnak' is not one of the model's 2: did you mean 'bank'?"
    assert none.message == "no problem is named: add the field problem"
    assert stranger.message == "label 'book' is not one of the 2 classes of problem 'bank': known: no, yes"
    assert good[0].problem == 0 and good[0].label is None
    with pytest.raises(InputError, match="problem 'bank' has rows of 1 class only"):
        MultiTask.learn([Example(text="a", problem="bank", target="no")])


@pytest.mark.parametrize("hidden", [True, False])
def test_a_further_problem_leaves_the_logits_of_the_others_as_they_are(batch, hidden):
    model = TaskModel(Encoder(CONFIG), dataclasses.replace(TASK, hidden=hidden)).eval()
    extended = extend_task_model(model, {"work": ["late", "leave", "pay"]})
    assert [p.name for p in extended.task.problems] == ["bank", "travel", "work"] and not extended.training
    with torch.no_grad():
        assert torch.equal(extended(batch)[:, :5], model(batch)) and extended(batch).shape == (30, 8)


def test_further_classes_keep_the_rows_of_the_old_ones(batch):
    model = TaskModel(Encoder(CONFIG), TASK).eval()
    learned = MultiTask.learn([dataclasses.replace(ROWS[1], target=name) for name in ("maybe", "no")])
    extended = extend_task_model(model, learned)
    assert extended.task.problems[0] == Problem(name="bank", classes=("no", "yes", "maybe"), counts=(1, 0, 1))
    assert extended.task.problems[1] == TASK.problems[1]
    before, after = model(batch), extended(batch)
    assert torch.equal(after[:, 3:], before[:, 2:])
    assert_close(after[:, :2], before[:, :2])
    assert extend_task(TASK, {}) == TASK


def test_frozen_extension_learns_the_new_problem_alone(batch, tokenizer):
    model = TaskModel(Encoder(CONFIG), TASK)
    extended = extend_task_model(model, {"work": ["late", "leave"]}, freeze=True)
    trained = [name for name, parameter in extended.named_parameters() if parameter.requires_grad]
    assert trained == ["head.out.2.weight", "head.out.2.bias"]
    with pytest.raises(InputError, match="a label model has no problems to add to"):
        extend_task_model(TaskModel(Encoder(CONFIG), LabelTask(classes=("a", "b"))), {"work": ["late", "leave"]})
