"""Answers in their contexts, however they are written down."""

import json

import pytest

from terrazzo.errors import InputError
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.rows.squad import answers_of

CONTEXT = "Ada Lovelace met Babbage. Babbage was 41."


def places(row):
    return [(span.start, span.end, span.text) for span in answers_of(row, CONTEXT)]


@pytest.mark.parametrize(
    "row",
    [
        {"answers": [{"text": "Lovelace", "answer_start": 4}]},
        {"answers": [{"text": "Lovelace", "answer_start": 9}]},  # mended: it stands there once
        {"answers": {"text": ["Lovelace"], "answer_start": [4]}},
        {"answers": "Lovelace", "answer_start": "4"},
        {"answers": ["Lovelace"]},
        {"answers": [" Lovelace\n"]},
    ],
)
def test_every_way_to_give_an_answer(row):
    assert places(row) == [(4, 12, "Lovelace")]


def test_the_given_occurrence_counts_and_no_answer_is_one_too():
    assert places({"answers": {"text": ["Babbage", "41"], "answer_start": [26, 38]}}) == [
        (26, 33, "Babbage"),
        (38, 40, "41"),
    ]
    for row in ({"answers": []}, {"answers": {"text": [], "answer_start": []}}, {"answers": None}, {"answers": ""}):
        assert places(row) == []
    assert places({"is_impossible": True, "answers": [{"text": "Ada", "answer_start": 0}]}) == []


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"text": "Byron", "answer_start": 0}], "'Byron' with answer_start 0, which is not in its context"),
        ([{"text": "Babbage", "answer_start": 3}], "stands there 2 times"),
        (["Babbage"], "no answer_start, which stands there 2 times"),
        ([{"text": "", "answer_start": 3}], "'' is no text"),
        ({"text": ["Ada", "41"], "answer_start": [0]}, "2 texts and 1 starts"),
        ([{"text": "Ada", "answer_start": "first"}], "'first' is no whole number"),
    ],
)
def test_answers_that_cannot_be_used(answers, message):
    with pytest.raises(InputError, match=message):
        answers_of({"answers": answers}, CONTEXT)


def squad(*questions):
    return {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]}


def test_squad_files_and_their_flat_form(tmp_path):
    one = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    none = {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True}
    (tmp_path / "a.json").write_text(json.dumps(squad(one, none)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({**row, "context": CONTEXT}) + "\n" for row in (one, none)))
    for name in ("a.json", "b.jsonl"):
        first, second = read_examples(tmp_path / name, "span")
        assert (first.id, first.text, first.other, first.target[0].text) == ("q1", CONTEXT, "Who?", "Ada")
        assert second.target == ()


def test_a_bad_question_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(squad({"id": "q9", "question": "Who?", "answers": ["Byron"]})))
    with pytest.raises(InputError, match="article 1, paragraph 1, question q9: answers: 'Byron'"):
        read_examples(tmp_path / "a.json", "span")
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}))
    with pytest.raises(InputError, match="paragraph 1: no 'context'"):
        read_examples(tmp_path / "a.json", "span")
