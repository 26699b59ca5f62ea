"""A labelled task on the training loop: steps, evaluation, early stopping, interruptions, ranks."""

from __future__ import annotations

import dataclasses
import random
import shutil

import numpy as np
import pytest
import torch

from terrazzo import load
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig, Schedule
from terrazzo.tasks import Example, Scores, TaskModel
from terrazzo.tasks.adapters import LoraConfig
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows, RowStream
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.training import TaskWorkload
from terrazzo.testing import TINY_MODEL, log_metrics, losses, train_on_ranks
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, train, write_report
from terrazzo.train.metrics import read_metrics
from terrazzo.train.state import latest_checkpoint

PLACES = ("in the garden", "at night", "under a bridge", "all day long")
SOUNDS = {"cat": "animal", "dog": "animal", "bird": "animal", "river": "thing", "engine": "thing"}


def rows(count, seed):
    draw = random.Random(seed)
    made = []
    for number in range(count):
        noun, label = draw.choice(list(SOUNDS.items()))
        text = f"the {noun} is " + " and ".join(draw.choices(PLACES, k=draw.randint(1, 2)))
        made.append(Example(text=text, target=label, where=f"rows.jsonl, line {number + 1}"))
    return made


@pytest.fixture
def workload(corpus):
    task = LabelTask.learn(rows(60, 0))
    parts = {
        name: LabelledRows.encode(task, rows(count, seed), corpus.tokenizer, 32)
        for name, count, seed in (("train", 60, 0), ("dev", 40, 1))
    }
    return TaskWorkload(task=task, tokenizer=corpus.tokenizer, max_len=32, batch_size=8, **parts)


def run_of(out, steps=12, lr=1e-2, **fields):
    stage = {name: fields.pop(name) for name in list(fields) if name in Stage.__dataclass_fields__}
    stage = Stage(
        **{
            "model": Init(fields={**TINY_MODEL, "dropout": 0.1}),
            "objective": SupervisedConfig(),
            "sampling": Sampling(workers=0),
            "optimizer": AdamWConfig(lr=lr),
            "schedules": {"lr": Schedule(warmup=0.1, final=0.0)},
            "budget": Budget(steps=steps),
            **stage,
        }
    )
    own = {"checkpoint_every": 5, "keep": 9, "eval_every": 3, "threads": 1, "device": "cpu", "precision": "fp32"}
    return RunConfig(data="rows.jsonl", out=str(out), stages=(stage,), **(own | fields))


def weights(folder):
    return load_task_model(folder, merge=False).model.state_dict()


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def cut_back(run, steps):
    """Leave a run as a kill right after the checkpoint at `steps` would."""
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > steps:
            shutil.rmtree(folder)
    shutil.rmtree(run / "model")


def evaluations(run):
    return [line for line in read_metrics(run / "metrics.jsonl") if "score" in line]


def test_every_epoch_takes_every_row_once_and_steps_run_over_its_end(workload):
    stream = RowStream(workload.train.flat, 8, seed=3)
    taken = [list(zip(plan.epochs, plan.pieces, strict=True)) for plan in map(stream.step, range(15))]
    flat = [item for step in taken for item in step]
    assert sorted(flat) == [(epoch, row) for epoch in (0, 1) for row in range(60)]
    assert {epoch for epoch, _ in taken[7]} == {0, 1}
    assert [row for _, row in flat[:60]] != [row for _, row in flat[60:]]
    batch = stream.pack(np.array([4, 1]), np.array([0, 0]))
    assert batch.lengths == tuple(len(workload.train.flat[i].ids) for i in (4, 1))
    assert batch.labels_B.tolist() == [int(workload.train.flat[i].label) for i in (4, 1)]
    assert RowStream(workload.train.flat[:3], 8, seed=3).step(0).pieces.shape == (3,)


def test_a_run_learns_repeats_and_scores_as_predictions_do(workload, tmp_path):
    long = {"steps": 30, "eval_every": 15, "checkpoint_every": 99}
    for name in ("one", "two"):
        assert train(run_of(tmp_path / name, **long), workload=workload, hooks=log_metrics) is not None
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")
    train(run_of(tmp_path / "three", **long, seed=18), workload=workload, hooks=log_metrics)
    assert losses(tmp_path / "three") != losses(tmp_path / "one")
    last = evaluations(tmp_path / "one")[-1]
    assert last["score"] == last["accuracy"] > 0.9
    said = [result.label for result in load(tmp_path / "one").predict([row.text for row in workload.dev.examples])]
    assert last["accuracy"] == np.mean(
        [label == row.target for label, row in zip(said, workload.dev.examples, strict=True)]
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"freeze": "encoder"}, {"adapter": LoraConfig(rank=2, dropout=0.1)}],
    ids=lambda fields: next(iter(fields), "all"),
)
def test_a_killed_run_goes_on_to_the_same_bits(workload, tmp_path, fields):
    chosen = dataclasses.replace(workload, **fields)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_of(whole, keep_best=True), workload=chosen, hooks=log_metrics)
    shutil.copytree(whole, parts)
    cut_back(parts, 5)
    train(run_of(parts, keep_best=True), workload=chosen, resume=True, hooks=log_metrics)
    assert losses(parts) == losses(whole) and len(losses(whole)) == 12
    assert_same_weights(whole / "model", parts / "model")
    model = load_task_model(whole / "model").model
    assert "lora" not in " ".join(model.state_dict())
    start = run_of(tmp_path / "start", steps=1, lr=1e-30)
    train(start, workload=chosen)
    before = load_task_model(tmp_path / "start" / "model").model.encoder.state_dict()
    moved = any((before[name] != tensor).any() for name, tensor in model.encoder.state_dict().items())
    assert moved == (chosen.freeze != "encoder")


def scripted(monkeypatch, scores):
    """Evaluations that give these scores one after the other."""
    given = iter(scores)
    monkeypatch.setattr(LabelTask, "score", lambda *a: Scores(main="accuracy", values={"accuracy": next(given)}))


def test_patience_ends_a_stage_and_the_best_evaluation_is_its_result(workload, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.2, 0.6, 0.5, 0.6, 0.1])
    config = run_of(tmp_path / "early", steps=30, patience=2, keep_best=True)
    train(config, workload=workload, hooks=log_metrics)
    assert [line["step"] for line in evaluations(tmp_path / "early")] == [3, 6, 9, 12]
    assert len(losses(tmp_path / "early")) == 12
    assert latest_checkpoint(tmp_path / "early").counters.best_step == 6

    scripted(monkeypatch, [0.0] * 99)
    plain = run_of(tmp_path / "plain", steps=30, checkpoint_every=6)
    train(plain, workload=workload, hooks=log_metrics)
    assert_same_weights(tmp_path / "early" / "model", tmp_path / "plain" / "checkpoints" / "step-00000006")


def test_the_best_weights_outlive_a_kill(workload, tmp_path, monkeypatch):
    scores = [0.2, 0.6, 0.5, 0.4]
    scripted(monkeypatch, scores)
    # the undisturbed run makes no checkpoint before its end: its best weights never leave the memory
    train(run_of(tmp_path / "whole", keep_best=True, checkpoint_every=99), workload=workload, hooks=log_metrics)

    class Killed(Exception):
        pass

    class Kill:
        def on_step(self, line):
            if line["step"] == 11:
                raise Killed

        def __getattr__(self, name):
            return lambda *arguments: None

    scripted(monkeypatch, scores)
    config = run_of(tmp_path / "run", keep_best=True)
    with pytest.raises(Killed):
        train(config, workload=workload, hooks=lambda run: [*log_metrics(run), Kill()])
    assert (tmp_path / "run" / "best" / "head.safetensors").is_file()
    assert latest_checkpoint(tmp_path / "run").counters.best_score == 0.6
    scripted(monkeypatch, scores[3:])
    train(config, workload=workload, resume=True, hooks=log_metrics)
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "run" / "model")


def test_other_rows_are_refused_on_resuming(workload, tmp_path):
    train(run_of(tmp_path / "run"), workload=workload)
    shutil.rmtree(tmp_path / "run" / "model")
    other = dataclasses.replace(workload, batch_size=9)
    with pytest.raises(InputError, match="differs from what"):
        train(run_of(tmp_path / "run"), workload=other, resume=True)


def test_rows_that_cannot_be_used_are_named(workload, corpus):
    task = workload.task
    odd = [*rows(3, 5), Example(text="the moon", target="planet", where="rows.jsonl, line 9")]
    with pytest.raises(InputError, match="^rows.jsonl, line 9: .*'planet' is not one of the 2 classes"):
        LabelledRows.encode(task, odd, corpus.tokenizer, 32)
    kept = LabelledRows.scoring(task, odd, task.encode_many(odd, corpus.tokenizer, 32), corpus.tokenizer, 32)
    assert len(kept.flat) == 4 and kept.flat[3].label is None


def test_several_ranks_take_the_same_steps(workload, tmp_path):
    calm = {"model": Init(fields={**TINY_MODEL, "dropout": 0.0}), "keep_best": True}
    workload = dataclasses.replace(workload, task=dataclasses.replace(workload.task, dropout=0.0))
    frozen = dataclasses.replace(workload, freeze="encoder")
    for name, chosen in (("all", workload), ("frozen", frozen)):
        train(run_of(tmp_path / name, steps=6, **calm), workload=chosen, hooks=log_metrics)
        config = run_of(tmp_path / f"{name}-ranks", steps=6, **calm)
        train_on_ranks(config, workload=chosen)
        assert losses(tmp_path / f"{name}-ranks") == pytest.approx(losses(tmp_path / name), rel=1e-5)
        alone, shared = (evaluations(tmp_path / folder) for folder in (name, f"{name}-ranks"))
        assert [line["heldout_loss"] for line in shared] == pytest.approx([line["heldout_loss"] for line in alone])
        assert [line["score"] for line in shared] == pytest.approx([line["score"] for line in alone])


def test_the_report_of_a_task_tells_of_its_metric(workload, tmp_path):
    train(run_of(tmp_path / "run"), workload=workload, hooks=log_metrics)
    page = write_report(tmp_path / "run").read_text()
    last = evaluations(tmp_path / "run")[-1]
    assert f"accuracy {last['score']:.4f} on the rows that score it" in page
    assert "auroc on the scoring rows" in page and "animal, thing" in page and "60 rows" in page
    for foreign in ("perplexity", "masked token", "Fill in the blank", "terrazzo pretrain"):
        assert foreign not in page


def test_a_frozen_encoder_runs_without_dropout_and_the_head_with(workload):
    config = Init(fields={**TINY_MODEL, "dropout": 0.5}).encoder_config(workload.tokenizer.get_vocab_size())
    batch = RowStream(workload.train.flat, 8, seed=0).pack(np.arange(8), np.zeros(8))
    for freeze in ("none", "embeddings", "encoder"):
        model = dataclasses.replace(workload, freeze=freeze).dressed(TaskModel(Encoder(config), workload.task)).train()
        assert torch.equal(model.encoder(batch), model.encoder(batch)) == (freeze == "encoder")
        assert not torch.equal(model(batch), model(batch))
        trained = {name.split(".")[1] for name, p in model.encoder.named_parameters("encoder") if p.requires_grad}
        assert ("embeddings" in trained, "blocks" in trained) == (freeze == "none", freeze != "encoder")
