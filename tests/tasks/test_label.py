"""One class or several for a text or a pair: learning classes, labels, losses, answers, metrics."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from torch.testing import assert_close

from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks import BadRow, Example, Result, TaskModel
from terrazzo.tasks.batches import collate
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.metrics import bootstrap
from terrazzo.testing import tiny_texts

TEXTS = tiny_texts(40)
CONFIG = mosaicbert("tiny", 128, width=32, num_heads=2, mlp_width=48, init_std=0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: TEXTS, "wordpiece", 128, shrink=True)


def rows_of(*targets):
    return [Example(text=text, target=target) for text, target in zip(TEXTS, targets, strict=False)]


ONE = rows_of(*(("even", "odd", "odd", "rare")[min(i, 3)] if i < 4 else ("even", "odd")[i % 2] for i in range(40)))
SEVERAL = rows_of(
    *(tuple(name for name, k in (("two", 2), ("three", 3), ("five", 5)) if i % k == 0) for i in range(40))
)


def answers(task, examples, tokenizer, model=None):
    model = (model or TaskModel(Encoder(CONFIG), task)).eval()
    documents = [row[0] for row in task.encode_many(examples, tokenizer, 40)]
    batch = collate(documents)
    with torch.no_grad():
        outputs = model(batch)
    parts = task.split(outputs, batch)
    triples = zip(examples, documents, parts, strict=True)
    return outputs, batch, [task.decode(example, [document], [part]) for example, document, part in triples]


def test_classes_have_a_fixed_order_whatever_the_order_of_rows():
    assert LabelTask.learn(ONE) == LabelTask.learn(ONE[::-1])
    assert LabelTask.learn(ONE).classes == ("even", "odd", "rare")
    assert LabelTask.learn(rows_of("10", "9", "-1", "9")).classes == ("-1", "9", "10")
    assert LabelTask.learn(rows_of("10", "9", "x")).classes == ("10", "9", "x")
    task = LabelTask.learn(SEVERAL)
    assert task.several and (task.classes, task.counts, task.rows) == (("five", "three", "two"), (8, 14, 20), 40)
    assert LabelTask.learn(ONE).counts[2] == 1, "a class with one row is a class"


def test_loss_is_the_mean_cross_entropy_with_the_weights_of_the_training_rows(tokenizer):
    task = LabelTask.learn(ONE)
    outputs, batch, said = answers(task, ONE, tokenizer)
    plain = task.loss(outputs, batch, SupervisedConfig())
    assert plain.weight == 40 and torch.equal(plain.sum, F.cross_entropy(outputs, batch.labels_B, reduction="sum"))
    right = sum(result.label == row.target for result, row in zip(said, ONE, strict=True))
    assert plain.logs["correct"] == right
    balanced = task.loss(outputs, batch, SupervisedConfig(class_weights="balanced"))
    per_class = [F.cross_entropy(outputs[batch.labels_B == c], batch.labels_B[batch.labels_B == c]) for c in range(3)]
    assert_close(balanced.sum / 40, torch.stack(per_class).mean())


def test_several_classes_at_once(tokenizer):
    task = LabelTask.learn(SEVERAL, threshold=0.4)
    outputs, batch, said = answers(task, SEVERAL, tokenizer)
    assert batch.labels_B.dtype == torch.float32 and batch.labels_B[0].tolist() == [1, 1, 1]
    found = task.loss(outputs, batch, SupervisedConfig())
    assert_close(found.sum / 40, F.binary_cross_entropy_with_logits(outputs, batch.labels_B))
    table = outputs.sigmoid().numpy() >= 0.4
    assert [set(r.labels) for r in said] == [{task.classes[c] for c in np.flatnonzero(row)} for row in table]
    scores, right = task.score(SEVERAL, said).values, batch.labels_B.numpy() > 0.5
    assert scores["accuracy"] == sk.accuracy_score(right, table) == found.logs["correct"].item() / 40
    assert scores["micro_f1"] == pytest.approx(sk.f1_score(right, table, average="micro"), abs=1e-12)
    expected = sk.f1_score(right, table, average="macro", zero_division=0)
    assert scores["f1"] == pytest.approx(expected, abs=1e-12)


def test_probabilities_come_likeliest_first_and_add_up(tokenizer):
    task = LabelTask.learn(ONE)
    outputs, _, said = answers(task, ONE, tokenizer)
    for logits, result in zip(outputs, said, strict=True):
        values = list(result.probabilities.values())
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)
        assert (result.label, result.score) == (task.classes[logits.argmax()], values[0])
        assert result.probabilities[task.classes[1]] == pytest.approx(logits.softmax(0)[1].item(), rel=1e-5)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_binary", "micro_f1", "mcc", "auroc"])
def test_metrics_are_scikit_learns(metric, tokenizer):
    rows = rows_of(*("no", "yes") * 20)
    task = LabelTask.learn(rows, metric=metric, positive="yes")
    _, _, said = answers(task, rows, tokenizer)
    right, labels = [row.target for row in rows], [result.label for result in said]
    scores = [result.probabilities["yes"] for result in said]
    expected = {
        "accuracy": sk.accuracy_score(right, labels),
        "f1": sk.f1_score(right, labels, average="macro"),
        "f1_binary": sk.f1_score(right, labels, pos_label="yes"),
        "micro_f1": sk.f1_score(right, labels, average="micro"),
        "mcc": sk.matthews_corrcoef(right, labels),
        "auroc": sk.roc_auc_score([name == "yes" for name in right], scores),
    }
    found = task.score(rows, said)
    assert found.values == pytest.approx(expected, abs=1e-12) and found.value == found.values[metric]
    interval = bootstrap(task.main_metric(), rows, said, samples=50)
    assert interval.value == pytest.approx(found.value, abs=1e-12) and interval.low <= interval.value <= interval.high


def test_of_three_classes_binary_f1_wants_to_know_which():
    rows = rows_of("a", "b", "c")
    said = [Result(label="a", score=1.0, probabilities={"a": 1.0, "b": 0.0, "c": 0.0})] * 3
    task = LabelTask.learn(rows)
    assert set(task.score(rows, said).values) == {"accuracy", "f1", "micro_f1", "mcc"}
    assert dataclasses.replace(task, positive="a").score(rows, said).values["f1_binary"] == pytest.approx(0.5)


def test_a_result_with_an_error_is_wrong():
    rows = rows_of("a", "b", "a", "b")
    said = [
        Result(label=row.target, score=1.0, probabilities={c: float(c == row.target) for c in "ab"}) for row in rows
    ]
    task = LabelTask.learn(rows)
    assert set(task.score(rows, said).values.values()) == {1.0}
    said[1] = Result(error="no text")
    found = task.score(rows, said).values
    assert found["accuracy"] == 0.75 and max(found.values()) < 1
    assert found["f1_binary"] == pytest.approx(2 / 3) and found["auroc"] == 0.5
    several = LabelTask.learn([dataclasses.replace(row, target=()) for row in rows], classes=["a"])
    empty = [dataclasses.replace(row, target=()) for row in rows[:2]]
    assert several.score(empty, [Result(labels=()), Result(error="no text")]).values["accuracy"] == 0.5


def test_answers_that_the_task_does_not_know_are_wrong_but_no_error():
    task = LabelTask(classes=("a", "b"))
    rows = rows_of("a", "c")
    assert task.score(rows, [Result(label="a"), Result(label="b")]).values["accuracy"] == 0.5


def test_a_pair_task_reads_two_texts(tokenizer):
    rows = [dataclasses.replace(row, other="the cat purrs") for row in ONE]
    task = LabelTask.learn(rows, kind="pair")
    (document,) = task.encode_many(rows, tokenizer, 40)[0]
    assert set(document.token_types) == {0, 1}
    (bad,) = task.encode_many([Example(text="a", where="f:1")], tokenizer, 40)
    assert isinstance(bad, BadRow) and bad.message.startswith("one text where the task reads two")


def test_labels_that_do_not_fit_are_told(tokenizer):
    task = LabelTask.learn(ONE)
    unknown, several = task.encode_many(rows_of("evem", ("even", "odd")), tokenizer, 40)
    assert unknown.message == "label 'evem' is not one of the 3 classes: did you mean 'even'?"
    assert several.message.startswith("2 classes in a task with one class a row")
    for rows, message in (
        (rows_of("a", "a"), "all 2 rows have the class 'a'"),
        (rows_of(None), "no row has a class"),
        (rows_of(1.5), "answer 1.5 is not a class"),
    ):
        with pytest.raises(InputError, match=message):
            LabelTask.learn(rows)
    for fields, message in (
        ({"classes": ("a", "a")}, "each once"),
        ({"positive": "c"}, "'c' is not a class"),
        ({"threshold": 1.0}, "threshold"),
        ({"several": True, "metric": "mcc"}, "one class a row"),
        ({"classes": ("a", "b", "c"), "metric": "auroc"}, "two classes"),
    ):
        with pytest.raises(InputError, match=message):
            LabelTask(**{"classes": ("a", "b"), **fields})
