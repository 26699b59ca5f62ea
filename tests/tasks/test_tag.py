"""A tagger loses no word, gives characters back exactly, scores as seqeval does, and learns."""

import random

import numpy as np
import pytest
import torch
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from tokenizers import Tokenizer

from terrazzo.config import from_dict, to_dict
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks.batches import collate
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.schemes import Scheme, convert_tags, split_words
from terrazzo.tasks.tag import TagTask
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Span

TEXT = "Zoë and 🙂 Ann, cat left São_Paulo for İstanbul, e\u0301te\u0301 Straße 東京 at night while it rains; "
TOKENIZERS = {
    "wordpiece": train_tokenizer(lambda: [TEXT] * 3, "wordpiece", 256, shrink=True),
    "lowercased": train_tokenizer(
        lambda: [TEXT] * 3, "wordpiece", 256, lowercase=True, strip_accents=True, shrink=True
    ),
    "bpe": train_tokenizer(lambda: [TEXT] * 3, "bpe", 320, shrink=True),
}


def tagged(draw: random.Random, repeats: int = 1, scheme: Scheme = "IOB2") -> Example:
    text = TEXT * repeats
    words, tags, at = split_words(text), [], 0
    while at < len(words):
        label, length = draw.choice(["PER", "LOC", None, None]), draw.randint(1, 3)
        tags += ["O"] * length if label is None else [f"B-{label}"] + [f"I-{label}"] * (length - 1)
        at += length
    return Example(text=text, words=words, target=convert_tags(tags[: len(words)], scheme), where="row")


def encode(task: TagTask, example: Example, tokenizer: Tokenizer, max_len: int = 256) -> list[Encoded]:
    documents = task.encode_many([example], tokenizer, max_len)[0]
    assert isinstance(documents, list), documents
    return documents


def perfect(task: TagTask, documents: list[Encoded]) -> list[np.ndarray]:
    return [5 * np.eye(len(task.classes), dtype=np.float32)[document.label] for document in documents]


@pytest.mark.parametrize("coding", ["IOB2", "BIOES"])
@pytest.mark.parametrize("scheme", ["IO", "IOB1", "IOB2", "BIOES", "BILOU"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_taught_comes_back(name: str, scheme: Scheme, coding: str) -> None:
    draw = random.Random(0)
    rows = [tagged(draw, repeats, scheme) for repeats in (1, 1, 8)]
    task = TagTask.learn(rows, coding=coding, overlap=8)
    assert (task.scheme, task.labels) == (scheme, ("LOC", "PER"))
    for row in rows:
        documents = encode(task, row, TOKENIZERS[name], max_len=48)
        assert max(len(document.ids) for document in documents) <= 48
        read = np.concatenate([document.context.words for document in documents])
        assert sorted(read) == list(range(len(row.words))), "every word once"
        result = task.decode(row, documents, perfect(task, documents))
        assert convert_tags(result.tags, scheme) == row.target
        again = Example(text=row.text, target=result.spans)
        assert task.taught(convert_tags(row.target, "IOB2")) == task.taught(result.tags)
        assert [task.taught(convert_tags(row.target, scheme))] == [
            tuple(task.classes[i] for d in encode(task, again, TOKENIZERS[name], 4096) for i in d.label)
        ]
        assert all(span.text == row.text[span.start : span.end] and 0.9 < span.score <= 1 for span in result.spans)
    scores = task.score(rows, [Result(tags=convert_tags(row.target, "IOB2")) for row in rows])
    assert scores.value == 1 and set(scores.values.values()) == {1.0}


def test_positions_are_the_first_tokens_of_the_words() -> None:
    tokenizer = TOKENIZERS["lowercased"]
    row = tagged(random.Random(1), 6)
    task = TagTask.learn([row], overlap=10)
    for document in encode(task, row, tokenizer, 32):
        for word, position in zip(document.context.words, document.positions, strict=True):
            start, end = row.words[word]
            first = tokenizer.encode(row.text[start:end], add_special_tokens=False).ids[0]
            assert document.ids[position] == first
        assert document.ids[0] == tokenizer.token_to_id("[CLS]") and document.ids[-1] == tokenizer.token_to_id("[SEP]")


def test_a_text_without_words_that_give_tokens_is_all_outside() -> None:
    task = TagTask(labels=("PER",))
    example = Example(text="\x07\x00")
    assert encode(task, example, TOKENIZERS["lowercased"]) == []
    assert task.decode(example, [], []) == Result(tags=("O", "O"), spans=())


def test_tags_learnt_from_io_never_part_neighbours() -> None:
    row = Example(text="a b", words=((0, 1), (2, 3)), target=("I-X", "I-X"))
    task = TagTask.learn([row])
    documents = encode(task, row, TOKENIZERS["bpe"])
    outputs = [np.array([[0, 9, 0], [0, 9, 5]], dtype=np.float32)]  # O, B-X, I-X
    assert task.decode(row, documents, outputs).tags == ("B-X", "I-X")
    assert TagTask(labels=("X",)).decode(row, documents, outputs).tags == ("B-X", "B-X")


def test_texts_are_split_as_the_training_rows_were() -> None:
    text = "O'Brien left ex-Milan ."
    words = tuple((at, at + len(word)) for word in text.split() for at in [text.index(word)])
    row = Example(text=text, words=words, target=("B-X", "O", "B-X", "O"))
    task = TagTask.learn([row])
    assert task.joined and not TagTask.learn([tagged(random.Random(0))]).joined
    raw = Example(text="O'Brien left ex-Milan.", target=(Span(start=0, end=7, label="X"),))
    (document,) = encode(task, raw, TOKENIZERS["wordpiece"])
    assert document.context.words.tolist() == [0, 1, 2, 3] and document.label.tolist() == [1, 0, 0, 0]
    result = task.decode(raw, [document], perfect(task, [document]))
    assert [span.text for span in result.spans] == ["O'Brien"]
    assert task.score([raw], [result]).value == 1


def random_rows(draw: random.Random, choices: list[str]) -> tuple[list[Example], list[Result]]:
    examples, results = [], []
    for _ in range(30):
        length = draw.randint(1, 9)
        words = tuple((2 * i, 2 * i + 1) for i in range(length))
        examples.append(Example(text="a " * length, words=words, target=tuple(draw.choices(choices, k=length))))
        results.append(Result(tags=tuple(draw.choices(choices, k=length))))
    return examples, results


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_scores_are_those_of_seqeval(prefixes: str) -> None:
    draw = random.Random(2)
    choices = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in "XY")]
    for _ in range(20):
        examples, results = random_rows(draw, choices)
        right, said = [list(e.target) for e in examples], [list(r.tags) for r in results]
        values = TagTask(labels=("X", "Y")).score(examples, results).values
        assert values["f1"] == pytest.approx(seqeval.f1_score(right, said), abs=1e-9)
        assert values["precision"] == pytest.approx(seqeval.precision_score(right, said), abs=1e-9)
        assert values["recall"] == pytest.approx(seqeval.recall_score(right, said), abs=1e-9)
        each = seqeval.f1_score(right, said, average=None)
        assert [values["f1_X"], values["f1_Y"]] == pytest.approx(list(each), abs=1e-9)
        valid = [[list(convert_tags(tags, "IOB2")) for tags in rows] for rows in (right, said)]
        assert values["f1"] == pytest.approx(seqeval.f1_score(*valid, mode="strict", scheme=IOB2), abs=1e-9)
        assert values["accuracy"] == pytest.approx(seqeval.accuracy_score(*valid), abs=1e-9)


def test_the_main_metric_is_what_score_says_and_resamples() -> None:
    examples, results = random_rows(random.Random(3), ["O", "B-X", "I-X", "B-Z"])
    task = TagTask(labels=("X",))
    metric = task.main_metric()
    assert metric(examples, results) == pytest.approx(task.score(examples, results).value)
    half = metric.rows(examples, results)[::2]
    assert metric.total(half.sum(0)) == pytest.approx(metric(examples[::2], results[::2]))


def test_a_row_with_an_error_is_wrong_throughout() -> None:
    example = Example(text="a b", words=((0, 1), (2, 3)), target=("B-X", "O"))
    scores = TagTask(labels=("X",)).score([example, example], [Result(error="bad"), Result(tags=("B-X", "O"))])
    assert (scores.values["precision"], scores.values["recall"], scores.values["accuracy"]) == (1.0, 0.5, 0.5)


def test_plain_tags_are_classes_of_words() -> None:
    words = ((0, 3), (4, 8), (8, 9))
    row = Example(text="she runs.", words=words, target=("PRON", "VERB", "PUNCT"))
    task = TagTask.learn([row])
    assert (task.scheme, task.classes) == ("plain", ("PRON", "PUNCT", "VERB"))
    documents = encode(task, row, TOKENIZERS["bpe"])
    result = task.decode(row, documents, perfect(task, documents))
    assert (result.tags, result.spans) == (row.target, None)
    assert task.score([row, row], [result, Result(tags=("PRON", "PRON", "PUNCT"))]).values == {"accuracy": 5 / 6}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Example(text="a b", words=((0, 1), (2, 3)), target=("O",)), "2 words and 1 tags"),
        (Example(text="a b", words=((0, 1), (2, 3)), target=("O", "B-PRE")), "no label 'PRE': did you mean 'PER'"),
        (Example(text="a b", words=((0, 1), (2, 3)), target=("O", "PER")), "'PER' is neither O nor B-"),
        (Example(text="a b", target=(Span(start=0, end=9, label="LOC"),)), "no label 'LOC'"),
        (Example(text="a b", target=(Span(start=1, end=2, label="PER"),)), "holds no word"),
        (Example(text=" \n"), "the text is empty"),
        (Example(text="a", other="b"), "two texts"),
    ],
)
def test_bad_rows_keep_their_place(row: Example, message: str) -> None:
    task, good = TagTask(labels=("PER",)), Example(text="a b")
    first, bad, last = task.encode_many([good, row, good], TOKENIZERS["bpe"], 16)
    assert isinstance(bad, BadRow) and message in bad.message
    assert isinstance(first, list) and isinstance(last, list)


def test_rows_that_teach_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no tag but O"):
        TagTask.learn([Example(text="a", words=((0, 1),), target=("O",))])
    with pytest.raises(InputError, match="f.jsonl, line 2: span 0-1 .* shares a word"):
        spans = (Span(start=0, end=1, label="X"), Span(start=0, end=1, label="Y"))
        TagTask.learn([Example(text="a", target=spans, where="f.jsonl, line 2")])


def test_a_task_survives_json() -> None:
    task = TagTask.learn([tagged(random.Random(4), 2, "BILOU")], coding="BIOES")
    assert from_dict(TagTask, to_dict(task)) == task
    assert sum(task.counts) == 2 * len(split_words(TEXT)) and len(task.counts) == 9


def names_and_places(draw: random.Random) -> Example:
    name, place = draw.choice(["Zoë", "Ann", "Bob"]), draw.choice(["東京", "São_Paulo"])
    spans = (Span(start=0, end=len(name), label="PER"),)
    text = f"{name} left {place} at night"
    where = text.index(place)
    return Example(text=text, target=(*spans, Span(start=where, end=where + len(place), label="LOC")))


def test_a_tagger_learns() -> None:
    torch.manual_seed(0)
    draw, tokenizer = random.Random(5), TOKENIZERS["wordpiece"]
    rows = [names_and_places(draw) for _ in range(12)]
    task = TagTask.learn(rows)
    config = EncoderConfig(vocab_size=256, width=32, depth=1, num_heads=2, mlp_width=64, max_len=64, dropout=0.0)
    model = TaskModel(Encoder(config), task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = collate([document for row in rows for document in encode(task, row, tokenizer)])
    for _ in range(120):
        loss = model.task_loss(batch, SupervisedConfig())
        assert loss.weight == len(batch.labels_M)
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    model.eval()
    documents = [encode(task, row, tokenizer) for row in rows]
    outputs = task.split(model(batch), batch)
    results = [task.decode(row, given, [out]) for row, given, out in zip(rows, documents, outputs, strict=True)]
    assert task.score(rows, results).value > 0.95
    assert results[0].spans[0].text == rows[0].text[: rows[0].target[0].end]


def test_balanced_weights_count_every_class_alike() -> None:
    rows = [names_and_places(random.Random(seed)) for seed in range(4)]
    task = TagTask.learn(rows)
    batch = collate([document for row in rows for document in encode(task, row, TOKENIZERS["wordpiece"])])
    outputs = torch.randn(len(batch.labels_M), len(task.classes), generator=torch.Generator().manual_seed(0))
    loss = task.loss(outputs, batch, SupervisedConfig(class_weights="balanced"))
    log_p = outputs.log_softmax(1)
    means = [-log_p[batch.labels_M == c, c].mean() for c in range(len(task.classes)) if (batch.labels_M == c).any()]
    torch.testing.assert_close(loss.sum / loss.weight, torch.stack(means).mean())
