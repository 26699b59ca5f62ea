"""What is counted in labelled rows, and what is warned of."""

import dataclasses
import json
import re

import pytest

from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.show import show_understanding
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.tag import TagTask
from terrazzo.tasks.task import Example, Span
from terrazzo.tasks.understood import understand

WORDS = "die katze schläft der hund bellt und singt"
TOKENIZER = train_tokenizer(lambda: [WORDS] * 3, "wordpiece", 128, shrink=True)

EVEN = [("katze", "a"), ("hund", "a"), ("die katze", "b"), ("der hund", "b")]


def rows(*pairs, name="train"):
    return [
        Example(text=text, target=target, where=f"{name}.csv, line {number}")
        for number, (text, target) in enumerate(pairs, 2)
    ]


def of(train, dev=None, **options):
    return understand(train, dev, LabelTask.learn(train), TOKENIZER, options.pop("max_len", 32), **options)


def test_rows_classes_and_lengths_are_counted():
    train = rows(("katze", "a"), ("hund", "a"), ("die katze bellt", "b"), ("der hund singt und bellt", "b"))
    found = of(train, rows(("katze singt", "b")), max_len=7)
    assert (found.train.rows, found.train.documents, found.train.classes) == (4, 4, {"a": 2, "b": 2})
    sizes = sorted(len(TOKENIZER.encode(row.text, add_special_tokens=False).ids) + 2 for row in train)
    assert dataclasses.astuple(found.train.lengths) == (sizes[2], sizes[3], sizes[3])
    assert (found.train.truncated, found.dev.rows, found.dev.classes) == (1, 1, {"b": 1})
    assert any("25% of the train rows are cut at 7 tokens (the longest has 8)" in text for text in found.warnings)
    assert json.loads(json.dumps(found.to_dict()))["train"]["classes"] == {"a": 2, "b": 2}


def test_sound_rows_give_no_warning():
    train = rows(*EVEN, ("katze", "a"), ("Sœur à Ålesund, déjà «là»", "b"))  # a text may stand there twice
    assert of(train, rows(("katze singt", "b"))).warnings == ()


@pytest.mark.parametrize(
    ("train", "dev", "warning"),
    [
        ([*EVEN, ("singt", "c")], [], "1 class with a single row in train: 'c'"),
        (EVEN, [("singt", "z")], "1 class in the eval rows that train lacks, never to be right: 'z'"),
        ([*EVEN, EVEN[2]], [("Die  KATZE", "b")], "1 of 1 eval row stand in train, too, .*: line 2 .train: line 4."),
        ([*EVEN, ("Hund", "b")], [], "1 text in train with different answers: line 3 .'a'. and line 6 .'b'.; decide"),
        ([(f"katze {n}", "a") for n in range(1, 21)] + EVEN[2:], [], "'a' has 20 training rows and 'b' 2"),
        ([*EVEN, ("schlÃ¤ft", "a")], [], "1 row with broken characters .'Ã¤' in train.csv, line 6."),
        ([*EVEN, ("sch\ufffdft", "a")], [], "1 row with broken characters"),
        ([*EVEN, (" ", "a")], [], "1 train rows that cannot be used are left out: train.csv, line 6"),
    ],
)
def test_what_looks_wrong_is_told_with_its_rows(train, dev, warning):
    found = of(rows(*train), rows(*dev, name="eval"))
    (text,) = [text for text in found.warnings if "cannot be used" not in text or "cannot be used" in warning]
    assert re.search(warning, text), text


def test_leaked_rows_are_listed_up_to_ten():
    train = rows(*[(f"hund {n}", "ab"[n % 2]) for n in range(12)])
    (text,) = of(train, rows(*[(f"hund {n}", "ab"[n % 2]) for n in range(12)], name="eval")).warnings
    assert text.startswith("12 of 12") and "line 11 (train: line 11)" in text and "and 2 more" in text


def test_classes_of_one_name_in_two_problems_are_two():
    answers = [("bank", "no")] * 10 + [("bank", "yes")] + [("travel", "yes")] * 2 + [("travel", "no")] * 2
    train = [
        Example(text=f"hund {n}", problem=problem, target=target, where=f"train.csv, line {n}")
        for n, (problem, target) in enumerate(answers)
    ]
    dev = [Example(text=f"katze {name}", problem=name, target="no") for name in ("bank", "late", "travel")]
    learned = MultiTask.learn(train)
    task = MultiTask(problems=(*learned.problems, Problem(name="late", classes=("no", "yes"))))
    found = understand(train, dev, task, TOKENIZER, 32)
    assert found.train.classes == {"bank/no": 10, "travel/yes": 2, "travel/no": 2, "bank/yes": 1}
    lone, lopsided = found.warnings  # none of what the model knew before
    assert lone.startswith("1 class with a single row in train: 'bank/yes'")
    assert lopsided.startswith("class 'bank/no' has 10") and lopsided.endswith("--class-weights balanced")


def test_tags_are_counted_as_stretches_whatever_their_scheme():
    text, words = "katze hund katze", ((0, 5), (6, 10), (11, 16))
    train = [
        Example(text=text, words=words, target=("I-X", "I-X", "B-X")),
        Example(text=text, target=(Span(start=0, end=10, label="Y"),)),
    ]
    found = understand(train, None, TagTask(labels=("X", "Y")), TOKENIZER, 32).train
    assert (found.words, found.stretches, found.classes) == (6, 3, {"X": 2, "Y": 1})


def test_questions_without_an_answer_are_counted():
    class Reads:
        kind = "span"

        def encode_many(self, examples, tokenizer, max_len):
            return LabelTask(classes=("a",)).encode_many(
                [Example(text=example.text) for example in examples], tokenizer, max_len
            )

    answer = Span(start=0, end=5, label="", text="katze")
    asked = [Example(text="katze", other=f"wer {n}", target=(answer,) if n else ()) for n in range(3)]
    found = understand(asked, None, Reads(), TOKENIZER, 32)
    assert (found.train.unanswerable, found.train.words, found.train.classes) == (1, None, None)


def test_the_table_shows_both_sets_and_the_warnings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    train = rows(*EVEN, ("singt", "[c]"))
    show_understanding(of(train, rows(("katze singt", "b")), ignored=("genre",)))
    out = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert {"label train eval", "rows 5 1", "class a 2 (40.0%) 0 (0.0%)", "columns not used: genre"} <= lines
    assert "warning: 1 class with a single row in train: '[c]'; add rows, or merge classes" in lines
