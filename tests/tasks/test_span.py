"""Answers come back to the character, from any window; the loss is a softmax over each document's own context."""

import itertools
import random

import numpy as np
import pytest
import torch

from terrazzo.config import from_dict, to_dict
from terrazzo.data import num_predictions
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.batches import collate
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.schemes import split_words
from terrazzo.tasks.span import SpanTask, best_span
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Span

TEXT = "Zoë fed 🙂👍 Ann, the cat of São_Paulo; e\u0301te\u0301 in İstanbul and 東京 while it rained. "
QUESTION = "who left where?"
TOKENIZERS = {
    "wordpiece": train_tokenizer(lambda: [TEXT, QUESTION] * 3, "wordpiece", 256, shrink=True),
    "lowercased": train_tokenizer(
        lambda: [TEXT, QUESTION] * 3, "wordpiece", 256, lowercase=True, strip_accents=True, shrink=True
    ),
    "bpe": train_tokenizer(lambda: [TEXT, QUESTION] * 3, "bpe", 320, shrink=True),
}


def answer(text: str, start: int, end: int) -> Span:
    return Span(start=start, end=end, label="", text=text[start:end])


def asked(draw: random.Random, repeats: int = 1) -> Example:
    text = TEXT * repeats
    words = split_words(text)
    first = draw.randrange(len(words))
    last = min(len(words) - 1, first + draw.randint(0, 3))
    spans = (answer(text, words[first][0], words[last][1]), answer(text, 0, 3))
    return Example(text=text, other=QUESTION, target=spans, where="row")


def encode(task: SpanTask, example: Example, name: str = "wordpiece", max_len: int = 64) -> list[Encoded]:
    documents = task.encode_many([example], TOKENIZERS[name], max_len)[0]
    assert isinstance(documents, list), documents
    return documents


def perfect(document: Encoded) -> np.ndarray:
    return 12 * (document.positions[:, None] == document.label).astype(np.float32)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_taught_comes_back(name: str) -> None:
    draw, task, whole = random.Random(0), SpanTask(overlap=24), 0
    for repeats in (1, 1, 1, 6, 6, 6, 6):
        row = asked(draw, repeats)
        documents = encode(task, row, name)
        assert max(len(document.ids) for document in documents) <= 64 and len(documents) >= repeats // 2
        result = task.decode(row, documents, [perfect(document) for document in documents])
        given = row.target[0]
        if any(document.label.any() for document in documents):
            whole += 1
            assert (result.spans[0].start, result.spans[0].end) == (given.start, given.end)
            assert result.label == given.text and 0.98 < result.score <= 1
        read = {
            c for d in documents for a, b in zip(d.context.starts, d.context.ends, strict=True) for c in range(a, b)
        }
        unread = {row.text[character] for character in set(range(len(row.text))) - read}
        assert unread <= {" ", "\u0301"}, "lost characters"
    assert whole >= 6, "answers fit in some window"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_accents_of_their_own_belong_to_the_answer(name: str) -> None:
    start = TEXT.index("e\u0301te\u0301")
    row = Example(text=TEXT, other=QUESTION, target=(answer(TEXT, start, start + 5),))
    documents = encode(SpanTask(), row, name, 256)
    assert SpanTask().decode(row, documents, [perfect(documents[0])]).label == "e\u0301te\u0301"


def test_white_space_is_no_answer() -> None:
    context = "Ada\n\n\n\t left"
    tokenizer = train_tokenizer(lambda: [QUESTION, "Ada left"], "bpe", 280, shrink=True)
    (document,) = SpanTask().encode_many([Example(text=context, other=QUESTION)], tokenizer, 64)[0]
    scores = np.zeros((len(document.positions), 2))
    scores[1 + context.index("\n")] = 20.0
    result = SpanTask().decode(Example(text=context, other=QUESTION), [document], [scores])
    assert result.label and result.label == result.spans[0].text == context[result.spans[0].start : result.spans[0].end]
    blank = Example(text="\n\n", other=QUESTION)
    documents = SpanTask().encode_many([blank], tokenizer, 64)[0]
    result = SpanTask().decode(blank, documents, [np.zeros((len(documents[0].positions), 2))])
    assert (result.label, result.spans) == ("", ())


def test_a_window_holds_question_and_context_as_the_tokenizer_writes_them() -> None:
    tokenizer = TOKENIZERS["wordpiece"]
    (document,) = encode(SpanTask(), asked(random.Random(1)), max_len=512)
    whole = tokenizer.encode(QUESTION, TEXT)
    assert document.ids.tolist() == whole.ids and document.token_types.tolist() == whole.type_ids
    context = [place for place, part in enumerate(whole.sequence_ids) if part == 1]
    assert document.positions.tolist() == [0, *context]
    assert document.truncated == 0


def test_long_questions_leave_room_for_the_context() -> None:
    row = Example(text=TEXT, other=QUESTION * 20)
    documents = encode(SpanTask(overlap=4), row, max_len=32)
    assert all(len(document.ids) <= 32 and len(document.positions) > 10 for document in documents)
    assert documents[0].truncated > 0 and documents[0].label is None


@pytest.mark.parametrize("unanswerable", [False, True])
def test_no_answer_is_given_only_where_contexts_may_hold_none(unanswerable: bool) -> None:
    row = Example(text=TEXT * 4, other=QUESTION, target=())
    task = SpanTask(unanswerable=unanswerable, overlap=8)
    documents = encode(task, row)
    assert all(document.label.tolist() == [[0, 0]] for document in documents)
    result = task.decode(row, documents, [perfect(document) for document in documents])
    assert (result.label == "") == unanswerable == (result.spans == ())
    if unanswerable:
        assert result.score > 0.98
        doubtful = SpanTask(unanswerable=True, threshold=1e3, overlap=8)
        assert doubtful.decode(row, documents, [perfect(document) for document in documents]).label != ""


def test_one_window_with_the_answer_outvotes_those_without() -> None:
    row = asked(random.Random(2), 6)
    task = SpanTask(unanswerable=True, overlap=24)
    documents = encode(task, row)
    assert {bool(document.label.any()) for document in documents} == {True, False}
    sure = [perfect(document) * (0.8 if document.label.any() else 1) for document in documents]
    assert task.decode(row, documents, sure).label == row.target[0].text


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_span_is_that_of_trying_all(longest: int) -> None:
    draw = np.random.default_rng(0)
    for length in (1, 2, 9, 20):
        first, last = draw.normal(size=(2, length))
        tried = {(i, j): first[i] + last[j] for i in range(length) for j in range(i, length) if j - i + 1 <= longest}
        i, j = max(tried, key=lambda pair: tried[pair])
        assert best_span(first, last, longest) == (pytest.approx(tried[i, j]), i, j)


def slow_loss(outputs: torch.Tensor, documents: list[Encoded]) -> tuple[torch.Tensor, int]:
    total, correct, start = torch.zeros(()), 0, 0
    for document in documents:
        scores = outputs[start : start + len(document.ids)][torch.from_numpy(document.positions)]
        right = [document.positions.tolist().index(place) for place in document.label[0]]
        for side in (0, 1):
            total = total - scores[:, side].log_softmax(0)[right[side]] / 2
        correct += all(int(scores[:, side].argmax()) == right[side] for side in (0, 1))
        start += len(document.ids)
    return total, correct


def batch_of(task: SpanTask) -> tuple[Packed, list[Encoded]]:
    draw = random.Random(3)
    rows = [asked(draw, repeats) for repeats in (1, 3, 1)] + [Example(text=TEXT, other=QUESTION, target=())]
    documents = [document for row in rows for document in encode(task, row)]
    return collate(documents), documents


def test_the_loss_is_the_mean_cross_entropy_of_both_ends_over_the_context() -> None:
    task = SpanTask(overlap=8)
    batch, documents = batch_of(task)
    outputs = (3 * torch.randn(batch.num_tokens, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    for document, start in zip(documents[:2], batch.cu_seqlens.tolist(), strict=False):
        for side in (0, 1):
            outputs.data[start + document.label[0, side], side] += 20
    outputs.data[batch.cu_seqlens[-2], 0] += 20  # of a document without an answer one end alone is right
    outputs.data[batch.cu_seqlens[-2] + documents[-1].positions[3], 1] += 20
    loss = task.loss(outputs, batch, SupervisedConfig())
    total, correct = slow_loss(outputs, documents)
    torch.testing.assert_close(loss.sum, total)
    assert (loss.weight, int(loss.logs["correct"])) == (len(documents), correct) and correct >= 2
    assert num_predictions(batch) == loss.weight, "what the loop divides by"
    (grad,) = torch.autograd.grad(loss.sum, outputs)
    torch.testing.assert_close(grad, torch.autograd.grad(total, outputs)[0])
    assert grad.isfinite().all()


def test_split_gives_each_document_its_context() -> None:
    task = SpanTask(overlap=8)
    batch, documents = batch_of(task)
    parts = task.split(torch.arange(batch.num_tokens)[:, None].float().expand(-1, 2), batch)
    for part, document, start in zip(parts, documents, batch.cu_seqlens.tolist(), strict=False):
        assert part[:, 0].tolist() == (start + document.positions).tolist()


def test_options_of_classes_are_refused() -> None:
    task = SpanTask()
    batch, _ = batch_of(task)
    with pytest.raises(InputError, match="focal_gamma"):
        task.loss(torch.zeros(batch.num_tokens, 2), batch, SupervisedConfig(focal_gamma=2.0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Example(text=TEXT), "there is no question"),
        (Example(text=TEXT, other=" "), "the question is empty"),
        (Example(text="\n", other=QUESTION), "the context is empty"),
        (Example(text="Zoë", other=QUESTION, target=(Span(start=1, end=9, label=""),)), "is not in the context of 3"),
        (Example(text="Zoë \x00 fed", other=QUESTION, target=(Span(start=4, end=5, label=""),)), "no character that"),
    ],
)
def test_bad_rows_keep_their_place(row: Example, message: str) -> None:
    good = asked(random.Random(4))
    first, bad, last = SpanTask().encode_many([good, row, good], TOKENIZERS["wordpiece"], 64)
    assert isinstance(bad, BadRow) and message in bad.message
    assert isinstance(first, list) and isinstance(last, list)


def test_scores_and_their_parts() -> None:
    text = "the cat sat"
    known = Example(text=text, other="?", target=(answer(text, 4, 7), answer(text, 0, 11)))
    unknown = Example(text=text, other="?", target=())
    said = [
        Result(label="the cat"),
        Result(label="sat down"),
        Result(error="bad"),
        Result(label=""),
        Result(label="cat"),
    ]
    task = SpanTask.learn([known, unknown])
    assert task.unanswerable and from_dict(SpanTask, to_dict(task)) == task
    rows = [known, known, known, unknown, unknown]
    values = task.score(rows, said).values
    assert values["exact_match_answer"] == pytest.approx(1 / 3) and values["f1_answer"] == pytest.approx(0.5)
    assert (values["exact_match"], values["f1"], values["accuracy_no_answer"]) == pytest.approx((0.4, 0.5, 0.5))
    assert task.main_metric()(rows, said) == pytest.approx(values["f1"])
    assert SpanTask.learn([known]).unanswerable is False
    assert set(task.score(rows[:3], said[:3]).values) == {"f1", "exact_match"}
    with pytest.raises(InputError, match="none of the 1 rows has an answer"):
        SpanTask.learn([unknown])


def test_a_reader_learns() -> None:
    torch.manual_seed(0)
    rows = []
    for name, place in itertools.product(("Ann", "Bob"), ("Rome", "Lima", "")):
        text = f"{name} fed the cat in {place}"
        spans = (answer(text, text.index(place), len(text)),) if place else ()
        rows.append(Example(text=text, other="where", target=spans))
    tokenizer = train_tokenizer(
        lambda: [TEXT, *(f"{row.text} {row.other}" for row in rows)] * 2, "wordpiece", 512, shrink=True
    )
    task = SpanTask.learn(rows)
    config = EncoderConfig(vocab_size=512, width=32, depth=1, num_heads=2, mlp_width=64, max_len=64, dropout=0.0)
    model = TaskModel(Encoder(config), task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    documents = task.encode_many(rows, tokenizer, 64)
    batch = collate([document for given in documents for document in given])
    for _ in range(40):
        loss = model.task_loss(batch, SupervisedConfig())
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    outputs = task.split(model.eval()(batch), batch)
    results = [task.decode(row, given, [out]) for row, given, out in zip(rows, documents, outputs, strict=True)]
    assert task.score(rows, results).values["exact_match"] == 1.0
