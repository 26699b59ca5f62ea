"""Predictions: in order, alike in any company, and never stopped by a row."""

from __future__ import annotations

import shutil

import pytest
import torch

import terrazzo
from terrazzo.errors import InputError
from terrazzo.packed import Packed
from terrazzo.tasks import BadRow, Example, Result, Span, predict
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.predict import Predictor, result_dict
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.rows import read_lines
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.testing import tiny_task_folder, tiny_texts

TEXTS = [*tiny_texts(12), "the cat", "a bird sings " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return tiny_task_folder(tmp_path_factory.mktemp("label") / "model", LabelTask(classes=("no", "yes", "perhaps")))


@pytest.fixture
def predictor(folder):
    loaded = load_task_model(folder)
    for parameter in loaded.model.parameters():  # apart from each other, so that a swap is seen
        parameter.data += torch.randn(parameter.shape) * 0.3
    return Predictor(loaded.model, loaded.tokenizer, loaded.max_len)


def by_hand(predictor, text):
    ids = predictor.tokenizer.encode(text).ids
    cls, sep = ids[0], ids[-1]
    ids = [cls, *ids[1:-1][: predictor.max_len - 2], sep]
    with torch.no_grad():
        return predictor.model(Packed.from_sequences([ids]))[0].softmax(-1)


def test_results_are_those_of_each_text_alone_in_order(predictor, monkeypatch):
    monkeypatch.setattr(predict, "_ROWS_AT_A_TIME", 5)
    for batch_tokens in (16_384, 40):
        results = predictor.predict(TEXTS, batch_tokens)
        assert len(results) == len(TEXTS)
        for text, result in zip(TEXTS, results, strict=True):
            expected = by_hand(predictor, text)
            shares = [result.probabilities[name] for name in predictor.task.classes]
            torch.testing.assert_close(torch.tensor(shares), expected, rtol=0, atol=1e-5)
            assert result.label == predictor.task.classes[expected.argmax()]
    assert [result.truncated > 0 for result in results] == [len(predictor.tokenizer.encode(t).ids) > 32 for t in TEXTS]


def test_a_bad_row_keeps_its_place_and_stops_nothing(predictor):
    rows = [
        "the cat",
        "",
        7,
        ("a bird", "a dog"),
        BadRow(where="x.jsonl, line 3", message="not JSON"),
        {"txt": "a"},
        "a",
    ]
    results = predictor.predict(rows)
    assert [result.error is None for result in results] == [True, False, False, False, False, False, True]
    messages = [result.error for result in results if result.error]
    for message, part in zip(
        messages,
        [
            "row 1: text: the text is empty",
            "row 2: 7 is no row",
            "row 3: ",
            "x.jsonl, line 3: not JSON",
            "row 5: ",
        ],
        strict=True,
    ):
        assert part in message
    assert results[0].score == pytest.approx(predictor.predict(["the cat"])[0].score, abs=1e-6)


ODD = [
    *(None, 3, b"x", object(), [], {}, {1: 2}, ["a", "b", "c"], "", "\u200b", "\0", "\ud83d"),
    *({"text": ["a"]}, {"text": float("nan")}, {"a": "x"}, {"a": "x", "b": ""}),
    *({"tokens": []}, {"tokens": [None]}, {"tokens": ["\u200b"]}, {"tokens": "[" * 100_000}),
    *({"question": "", "context": "c"}, {"question": 3, "context": "c"}, {"question": "q", "context": "\u200b"}),
    *({"text": "a", "problem": "none"}, {"text": "a", "problem": ["p"]}, Example(text="a", problem="none")),
]


@pytest.mark.parametrize(
    ("task", "good"),
    [
        (LabelTask(classes=("no", "yes")), "the cat"),
        (LabelTask(kind="pair", classes=("no", "yes")), ["the cat", "a bird"]),
        (RegressionTask(), "the cat"),
        (TagTask(labels=("X",)), {"tokens": ["the", "cat"]}),
        (SpanTask(unanswerable=True), {"question": "the cat", "context": "a bird sings"}),
        (MultiTask(problems=(Problem(name="p", classes=("no", "yes")),)), {"text": "the cat", "problem": "p"}),
    ],
)
def test_no_row_stops_a_model_of_any_kind(tmp_path, task, good):
    model = terrazzo.load(tiny_task_folder(tmp_path / "m", task))
    lines = read_lines([b"[" * 100_000, b"1" * 10_000, b"{", b"\xff"], task.kind)
    first, *between, last = model.predict([good, *ODD, *lines, good])
    assert len(between) == len(ODD) + 4 and all(result.error for result in between[-4:])
    assert first.error is None and (last.label, last.spans) == (first.label, first.spans)
    assert all(len(result.error) < 300 for result in between if result.error)


def test_a_text_of_a_hundred_thousand_tokens_is_cut_and_says_so(predictor):
    short, long = predictor.predict(["the cat", "the cat " * 50_000])
    assert (short.truncated, long.truncated) == (0, 100_000 - (predictor.max_len - 2))
    torch.testing.assert_close(
        torch.tensor([long.probabilities[name] for name in predictor.task.classes]),
        by_hand(predictor, "the cat " * 15),
        rtol=0,
        atol=1e-5,
    )


def test_answers_that_the_model_does_not_know_do_not_matter(predictor):
    (known,) = predictor.predict(["the cat"])
    assert predictor.predict([Example(text="the cat", target="never heard of")]) == [known]
    assert predictor.predict([{"text": "the cat", "label": 3}]) == [known]


def test_rows_are_read_as_they_are_needed(predictor, monkeypatch):
    monkeypatch.setattr(predict, "_ROWS_AT_A_TIME", 2)
    asked = []
    stream = predictor.stream(asked.append(i) or "the cat" for i in range(10))
    next(stream)
    assert asked == [0, 1, 2, 3], "one chunk is read while another runs"
    assert len(list(stream)) == 9


def test_load_predicts_encodes_and_finds_the_model_inside(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(folder)
    model = terrazzo.load(tmp_path / "out")
    before = model.predict(TEXTS)
    assert model.encode(TEXTS, max_len=8).shape == (len(TEXTS), 32)
    assert model.predict(TEXTS) == before
    with pytest.raises(InputError, match=r"predict\(\[...\]\)"):
        model.predict("the cat")


def test_pairs_are_tuples(tmp_path):
    model = terrazzo.load(tiny_task_folder(tmp_path / "m", LabelTask(kind="pair", classes=("no", "yes"))))
    first, second, alone = model.predict(
        [("the cat purrs", "a bird"), {"a": "the cat purrs", "b": "a bird"}, "the cat"]
    )
    assert first == second and first.error is None
    assert "one text" in alone.error or "no row of the task 'pair'" in alone.error


def test_a_model_without_a_head_says_how_to_get_one(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / "task.json").unlink()
    model = terrazzo.load(tmp_path / "plain")
    assert len(model.encode(["the cat"])) == 1
    with pytest.raises(InputError, match="no head of a task: fine-tune it first: terrazzo finetune"):
        model.predict(["the cat"])


def test_json_holds_what_says_something():
    assert result_dict(Result(error="row 3: empty")) == {"error": "row 3: empty"}
    spans = (Span(start=0, end=3, label="PER", score=0.12345678, text="Ann"),)
    assert result_dict(Result(spans=spans, tags=("B-PER",), truncated=2)) == {
        "spans": [{"start": 0, "end": 3, "label": "PER", "score": 0.123457, "text": "Ann"}],
        "tags": ["B-PER"],
        "truncated": 2,
    }
    assert result_dict(Result(label="", score=1 / 3)) == {"label": "", "score": 0.333333}
