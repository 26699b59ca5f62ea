"""Evaluations: metrics with their interval, tables, and the mistakes worth reading."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from terrazzo.errors import InputError
from terrazzo.tasks import BadRow, Example, Result, Span
from terrazzo.tasks.evaluate import calibration_error, evaluate_model, evaluation, fingerprint, write_evaluation
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.mistakes import judge, worst_mistakes
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.predict import Predictor
from terrazzo.testing import tiny_task_folder, tiny_texts

CLASSES = ("a", "b", "c")
TASK = LabelTask(classes=CLASSES)


def said(label, score=0.8, **fields):
    rest = (1 - score) / (len(CLASSES) - 1)
    return Result(label=label, score=score, probabilities={c: score if c == label else rest for c in CLASSES}, **fields)


def rows(targets):
    return [Example(text=f"text {i}", target=t, where=f"f.jsonl, line {i + 1}") for i, t in enumerate(targets)]


def drawn(count=200):
    draw = np.random.default_rng(0)
    right = draw.choice(CLASSES, count, p=(0.6, 0.3, 0.1)).tolist()
    labels = [r if draw.random() < 0.7 else str(draw.choice(CLASSES)) for r in right]
    return right, [said(label, float(draw.uniform(0.4, 1))) for label in labels]


def test_tables_are_those_of_scikit_learn():
    right, results = drawn()
    found = evaluation(TASK, rows(right), results)
    labels = [result.label for result in results]
    assert found.confusion.classes == ("a", "b", "c")
    assert np.array_equal(found.confusion.counts, confusion_matrix(right, labels, labels=CLASSES))
    expected = np.array(precision_recall_fscore_support(right, labels, labels=CLASSES))
    measured = [[part[name] for part in found.groups.values()] for name in ("precision", "recall", "f1", "rows")]
    np.testing.assert_allclose(measured, expected)
    assert found.low < found.value < found.high
    assert found.value == np.mean([r == label for r, label in zip(right, labels, strict=True)])
    assert found.confusion.pairs(1)[0][2] == max(
        count for i, row in enumerate(found.confusion.counts) for j, count in enumerate(row) if i != j
    )


def test_calibration_error_by_hand():
    results = [said("a", 0.95), said("a", 0.9), said("b", 0.5), said("b", 0.55)]
    right = ["a", "b", "b", "b"]
    # bins of 1/10: (0.9, 1] holds the first, (0.8, 0.9] the second, (0.4, 0.5] the third, (0.5, 0.6] the last
    expected = (0.05 + 0.9 + 0.5 + 0.45) / 4
    assert calibration_error(list(zip(right, results, strict=True)), bins=10) == pytest.approx(expected)
    assert calibration_error([("a", said("a", 1.0))] * 3) == 0


def test_a_bad_row_says_where_it_stands_once():
    (row,) = rows(["a"])
    found = evaluation(TASK, [row, *rows(["a"])], [Result(error=f"{row.where}: the text is empty"), said("a")])
    assert found.bad == (BadRow(where=row.where, message="the text is empty"),)


def test_rows_that_cannot_be_judged_are_counted_and_named():
    read = rows(["a", "b", "z", None, "a"])
    results = [said("a"), Result(error="the text is empty"), said("a"), said("a"), said("b", truncated=7)]
    found = evaluation(TASK, [*read, BadRow(where="line 6", message="not JSON")], [*results, Result(error="not JSON")])
    assert (found.rows, found.without_answer, found.truncated) == (4, 1, 1)
    assert found.value == 0.25  # errors and unknown classes count as wrong
    assert [(bad.where, bad.message) for bad in found.bad] == [
        ("line 6", "not JSON"),
        ("f.jsonl, line 2", "the text is empty"),
    ]
    assert found.unknown_labels == {"z": 1}
    with pytest.raises(InputError, match="none of the 1 rows has an answer"):
        evaluation(TASK, rows([None]), [said("a")])


def test_unknown_labels_are_named_where_a_row_has_several_too():
    task, result = LabelTask(classes=CLASSES, several=True), said("a", labels=("a",))
    assert evaluation(task, rows([("a", "z"), ("z", "y"), ("b",)]), [result] * 3).unknown_labels == {"z": 2, "y": 1}


def test_the_surest_mistakes_come_first():
    results = [said("a", 0.6), said("a", 0.99), said("b", 0.9), said("c", 0.9)]
    worst = worst_mistakes("label", rows(["b", "b", "b", "a"]), results, most=2)
    assert [mistake.where for mistake in worst] == ["f.jsonl, line 2", "f.jsonl, line 4"]
    assert (worst[0].right, worst[0].said) == ("b", "a (99%)")
    assert worst[0].loss == pytest.approx(-math.log(0.005))


def test_what_counts_as_a_mistake_in_each_kind():
    loss, right, given = judge("regression", Example(text="", target=3.0), Result(score=1.5))
    assert (loss, right, given) == (1.5, "3", "1.5")
    several = Example(text="", target=("a", "b"))
    assert judge("label", several, Result(labels=("b", "a"), probabilities={"a": 0.6, "b": 0.6}))[0] == 0
    loss, right, given = judge("label", several, Result(labels=("a",), probabilities={"a": 0.9, "b": 0.2, "c": 0.1}))
    assert loss == pytest.approx(-math.log(0.9 * 0.2 * 0.9)) and (right, given) == ("a, b", "a")
    tagged = Example(
        text="Ann Lee in Rome", words=((0, 3), (4, 7), (8, 10), (11, 15)), target=("B-P", "I-P", "O", "B-L")
    )
    assert judge("tag", tagged, Result(tags=("B-P", "O", "O", "B-L"))) == (2, "P: Ann Lee", "P: Ann")
    spans = Example(text="Ann Lee", target=(Span(start=0, end=7, label="P"),))
    assert judge("tag", spans, Result(spans=(Span(start=0, end=7, label="P", score=0.4),)))[0] == 0


def test_numbers_survive_json_and_name_their_rows(tmp_path):
    right, results = drawn(20)
    found = evaluation(TASK, rows(right), results)
    nothing = dataclasses.replace(found, calibration_error=math.nan)
    write_evaluation(tmp_path / "e.json", nothing, model="M")
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["model"] == "M" and written["provenance"]["python"]
    assert written["calibration_error"] is None and written["value"] == found.value
    assert written["confusion"]["counts"] == [list(row) for row in found.confusion.counts]
    assert fingerprint(rows(["a"])) != fingerprint(rows(["b"]))
    moved = [Example(text="text 0", target="a", where="elsewhere")]
    assert fingerprint(moved) == fingerprint(rows(["a"])) == fingerprint(moved)


def test_a_model_is_evaluated_whole(tmp_path):
    loaded = load_task_model(tiny_task_folder(tmp_path / "m", LabelTask(classes=("no", "yes"))))
    examples = [Example(text=text, target="yes" if i % 3 else "no") for i, text in enumerate(tiny_texts(30))]
    found = evaluate_model(Predictor(loaded.model, loaded.tokenizer, loaded.max_len), examples, worst=3)
    assert found.rows == 30 and 0 <= found.low <= found.value <= found.high <= 1
    assert 0 < len(found.worst) <= 3 and found.bad == ()
