"""Learning from a teacher: terms against slow references, nothing to learn from oneself, a workload that follows."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from terrazzo.compression.distill import (
    DistillConfig,
    Taps,
    answers_loss,
    check_pair,
    hidden_loss,
    kl_sum,
    relations_loss,
)
from terrazzo.compression.distill_workload import Distilled, DistillWorkload
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert, modernbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.batches import collate
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.tasks.task import Span
from terrazzo.tasks.training import TaskWorkload
from terrazzo.testing import TINY_MODEL, log_metrics
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, train

EVERYTHING = DistillConfig(labels=0.0, outputs=1.0, hidden=1.0, relations=1.0, relation_heads=4)
ROWS = {
    "label": (LabelTask, [("the cat purrs", "a"), ("a river flows by", "b"), ("the dog", "c")]),
    "several": (LabelTask, [("the cat purrs", ("a", "b")), ("a river flows by", ("b",)), ("the dog", ())]),
    "regression": (RegressionTask, [("the cat purrs", 1.0), ("a river flows by", 2.5), ("the dog", 0.0)]),
    "tag": (TagTask, [("the cat purrs", ("O", "B-X", "O")), ("a river flows by", ("O", "B-X", "I-X", "O"))]),
    "span": (SpanTask, [("the cat purrs", (Span(start=4, end=7, label="", text="cat"),)), ("a river flows by", ())]),
    "multi": (MultiTask, [("the cat purrs", "a"), ("a river flows by", "b"), ("the dog", "x"), ("at night", "y")]),
}


def examples_of(kind: str) -> list[Example]:
    rows = []
    for text, target in ROWS[kind][1]:
        words = None
        if kind == "tag":
            ends = np.cumsum([len(word) + 1 for word in text.split()])
            words = tuple(
                (int(end) - len(word) - 1, int(end) - 1) for word, end in zip(text.split(), ends, strict=True)
            )
        other = "what purrs" if kind == "span" else None
        problem = ("one" if target in ("a", "b") else "two") if kind == "multi" else None
        rows.append(Example(text=text, target=target, words=words, other=other, problem=problem))
    return rows


@pytest.fixture(params=ROWS)
def taught(request, corpus):
    """A teacher of each task, without dropout, and a batch with labels."""
    rows = examples_of(request.param)
    task = ROWS[request.param][0].learn(rows)
    documents = LabelledRows.encode(task, rows, corpus.tokenizer, 32).flat
    torch.manual_seed(0)
    config = bert("tiny", corpus.vocab_size, **TINY_MODEL, dropout=0.0, attention_dropout=0.0)
    teacher = TaskModel(Encoder(config), task)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher, collate(documents)


def test_there_is_nothing_to_learn_from_oneself(taught) -> None:
    teacher, batch = taught
    student = copy.deepcopy(teacher).eval()
    loss = Distilled(SupervisedConfig(), teacher, EVERYTHING).loss(student, batch)
    gradients = torch.autograd.grad(loss.sum, list(student.parameters()), allow_unused=True)
    assert_close(loss.sum, torch.tensor(0.0), rtol=0, atol=1e-4)
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-4


def test_what_is_taught_reaches_every_part_of_another_student(taught) -> None:
    teacher, batch = taught
    student = TaskModel(Encoder(teacher.config), teacher.task).eval()
    loss = Distilled(SupervisedConfig(), teacher, EVERYTHING).loss(student, batch)
    names = [name for name, _ in student.named_parameters()]
    gradients = torch.autograd.grad(loss.sum, list(student.parameters()), allow_unused=True)
    untouched = {name for name, g in zip(names, gradients, strict=True) if g is None or not g.any()}
    assert loss.sum > 0 and loss.sum.isfinite() and all(g.isfinite().all() for g in gradients if g is not None)
    assert untouched <= {"encoder.embeddings.token_types.weight"}
    own = teacher.task.loss(student(batch), batch, SupervisedConfig())
    only = Distilled(SupervisedConfig(), teacher, DistillConfig(labels=1.0, outputs=0.0)).loss(student, batch)
    assert_close(only.sum, own.sum)
    assert only.weight == own.weight


def test_softened_answers_are_torchs_divergence_times_the_square_of_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator)
    task = LabelTask.learn([Example(text="x", target=name) for name in "abc"])
    batch = Packed(tokens_T=torch.zeros(5, dtype=torch.long), lengths=(1,) * 5)
    expected = 9 * F.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="sum", log_target=True
    )
    assert_close(answers_loss(task, student, teacher, batch, 3.0), expected, rtol=1e-6, atol=1e-6)
    closed = torch.tensor([[True, True, False]] * 5)
    pair = F.kl_div(student[:, :2].log_softmax(1), teacher[:, :2].log_softmax(1), reduction="sum", log_target=True)
    assert_close(kl_sum(student, teacher, closed), pair, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "direction"])
def test_relations_are_those_of_each_document_whatever_the_widths(kind) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, heads = (4, 1, 6), 2
    batch = Packed(tokens_T=torch.zeros(11, dtype=torch.long), lengths=lengths)
    mine = torch.randn(11, 3, 8, generator=generator).requires_grad_()
    theirs = torch.randn(11, 3, 12, generator=generator)
    sums, count = torch.zeros(()), 0
    for a, b in zip(mine.split(lengths), theirs.split(lengths), strict=True):
        for part in range(3):
            for head in range(heads):
                first, second = (x[:, part].unflatten(1, (heads, -1))[:, head] for x in (a, b))
                s, t = first @ first.T * first.shape[1] ** -0.5, second @ second.T * second.shape[1] ** -0.5
                if kind == "softmax":
                    sums = sums + F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum")
                    count += len(s)
                else:
                    sums = sums + (s / s.norm() - t / t.norm()).norm()
                    count += 1
    got = relations_loss(mine, theirs, batch, heads, kind)
    assert_close(got, sums / count, rtol=1e-5, atol=1e-6)
    slow, fast = (torch.autograd.grad(loss, mine)[0] for loss in (sums / count, got))
    assert_close(fast, slow, rtol=1e-4, atol=1e-6)  # what the shorter documents are padded with pulls at nothing
    scaled = relations_loss(3 * mine, theirs, batch, heads, kind)
    assert torch.allclose(scaled, got, rtol=1e-4) == (kind == "direction")


@pytest.mark.parametrize("kind", ["softmax", "direction"])
def test_relations_do_not_ask_how_attention_splits_its_heads(kind) -> None:
    """The same projections in two heads and in four: nothing to learn, and no slope but that of rounding."""
    task = LabelTask.learn([Example(text="x", target=name) for name in "ab"])
    config = bert("tiny", 50, **TINY_MODEL | {"depth": 1}, dropout=0.0, attention_dropout=0.0)
    teacher = TaskModel(Encoder(config), task).eval()
    student = TaskModel(Encoder(config.replace(num_heads=4)), task).eval()
    student.load_state_dict(teacher.state_dict())
    options = DistillConfig(outputs=0.0, relations=1.0, relation_heads=8, relation_kind=kind)
    batch = Packed(tokens_T=torch.randint(50, (24,)), lengths=(4, 1, 19), labels_B=torch.tensor([0, 1, 1]))
    assert not torch.allclose(student(batch), teacher(batch), rtol=0, atol=1e-6)
    loss = Distilled(SupervisedConfig(), teacher, options).loss(student, batch).sum
    slope = torch.autograd.grad(loss, student.encoder.blocks[0].attention.qkv.weight)[0]
    assert_close(loss, torch.tensor(0.0), rtol=0, atol=1e-6)
    assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)


def test_hidden_states_count_by_their_mean_square() -> None:
    ones, zeros = torch.ones(3, 4), torch.zeros(3, 4)
    assert_close(hidden_loss([ones, 2 * ones], [zeros, zeros]), torch.tensor(2.5))


def test_blocks_pair_up_evenly_or_as_told() -> None:
    deep, flat = modernbert("tiny", 50, depth=6), modernbert("tiny", 50, depth=3)
    assert DistillConfig().pairs(flat, deep) == [(0, 1), (1, 3), (2, 5)]
    assert DistillConfig().pairs(deep, deep) == [(n, n) for n in range(6)]
    assert DistillConfig(layers=(-1, 4, 5)).pairs(flat, deep) == [(1, 4), (2, 5)]
    with pytest.raises(InputError, match=r"layers \(1, 2\): one block of the teacher's 6, or -1, for each of 3"):
        DistillConfig(layers=(1, 2)).pairs(flat, deep)


def test_what_cannot_be_learnt_is_refused() -> None:
    one, other = bert("tiny", 50), bert("mini", 50)
    with pytest.raises(InputError, match="there is nothing to learn from"):
        DistillConfig(outputs=0)
    with pytest.raises(InputError, match="hidden 1.0: the teacher has width 256, the student 128"):
        check_pair(DistillConfig(hidden=1.0), one, other)
    with pytest.raises(InputError, match="relation_heads 12: block 1 of the student is 128 wide"):
        check_pair(DistillConfig(relations=1.0), one, other)
    with pytest.raises(InputError, match="not one tokenizer"):
        check_pair(DistillConfig(), one, bert("tiny", 60))


def test_a_student_says_what_its_teacher_says_not_what_the_rows_say(corpus, tmp_path) -> None:
    draw = random.Random(0)
    texts = [f"the {draw.choice(('cat', 'dog', 'river', 'engine'))} hums at night" for _ in range(48)]
    right = [Example(text=text, target="animal" if "cat" in text or "dog" in text else "thing") for text in texts]
    wrong = [Example(text=row.text, target="animal" if row.target == "thing" else "thing") for row in right]
    task = LabelTask.learn(right)

    def workload(rows):
        encoded = LabelledRows.encode(task, rows, corpus.tokenizer, 32)
        return TaskWorkload(task=task, tokenizer=corpus.tokenizer, max_len=32, batch_size=8, train=encoded, dev=encoded)

    def trained(out, work):
        stage = Stage(
            model=Init(fields=TINY_MODEL),
            objective=SupervisedConfig(),
            sampling=Sampling(workers=0),
            optimizer=AdamWConfig(lr=1e-2),
            budget=Budget(steps=30),
        )
        config = RunConfig(data="", out=str(out), stages=(stage,), device="cpu", precision="fp32", threads=1)
        train(config, workload=work, hooks=log_metrics)
        return load_task_model(out / "model")

    teacher = trained(tmp_path / "teacher", workload(right)).model
    student = DistillWorkload(inner=workload(wrong), teacher=teacher, options=DistillConfig(hidden=1.0))
    loaded = trained(tmp_path / "student", student)
    said = [result.label for result in Predictor(loaded.model, loaded.tokenizer, 32).predict(right)]
    assert said == [row.target for row in right]
    head = copy.deepcopy(teacher)
    next(head.head.parameters()).data += 1
    other = DistillWorkload(inner=student.inner, teacher=head, options=student.options)
    assert other.fingerprint != student.fingerprint, "a teacher is its head, too"
    plain = student.inner.fingerprint
    assert (
        len(
            {
                plain,
                student.fingerprint,
                DistillWorkload(inner=student.inner, teacher=loaded.model, options=student.options).fingerprint,
            }
        )
        == 3
    )


def test_a_teacher_that_is_remembered_need_not_be_asked_again(corpus) -> None:
    rows = examples_of("label")
    task = LabelTask.learn(rows)
    documents = LabelledRows.encode(task, rows, corpus.tokenizer, 32).flat
    torch.manual_seed(0)
    config = bert("tiny", corpus.vocab_size, **TINY_MODEL, dropout=0.0, attention_dropout=0.0)
    teacher, student = (TaskModel(Encoder(config), task).eval() for _ in range(2))
    asked = Distilled(SupervisedConfig(), teacher, EVERYTHING, remembered=2**20)
    forgetful = Distilled(SupervisedConfig(), teacher, EVERYTHING)
    asked.loss(student, collate(documents))
    known = collate(documents[::-1])
    expected = forgetful.loss(student, known).sum
    teacher.forward = None
    assert_close(asked.loss(student, known).sum, expected, rtol=2e-3, atol=0)
    with pytest.raises(TypeError):
        forgetful.loss(student, known)
    full = Distilled(SupervisedConfig(), teacher, EVERYTHING, remembered=8)
    full.memory.keep(known, torch.zeros(len(documents), 3), Taps())
    assert full.memory.bytes <= 8 and full.memory.recall(known) is None
