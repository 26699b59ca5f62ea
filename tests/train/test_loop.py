"""The loop: methods as data, the loss as one sum, budgets, and what ends a run early."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from terrazzo.checkpoint import load_model
from terrazzo.errors import InputError, RunError
from terrazzo.nn import MaskedLM
from terrazzo.objectives import MLM, Loss, MLMConfig
from terrazzo.optim import AdamWConfig, LionConfig, MuonConfig, Ramp, Schedule, StableAdamWConfig
from terrazzo.testing import TINY_MODEL, check_method, log_metrics, losses, tiny_run
from terrazzo.train import Budget, FromFolder, Init, Previous, RunConfig, Sampling, Stage, loop, pretraining, train
from terrazzo.train.state import latest_checkpoint

CALM = Init(fields={**TINY_MODEL, "dropout": 0.0})
GROW = '''
def deepen(state, config):
    """Twice the blocks, each a copy of the one of its rank."""
    grown = {}
    for name, tensor in state.items():
        if not name.startswith("encoder.blocks."):
            grown[name] = tensor
            continue
        number, _, rest = name.removeprefix("encoder.blocks.").partition(".")
        for copy in (int(number), int(number) + config.depth):
            grown[f"encoder.blocks.{copy}.{rest}"] = tensor.clone()
    return grown, config.replace(depth=2 * config.depth)
'''


class Recorder:
    """A hook that keeps what it hears."""

    def __init__(self):
        self.steps, self.evaluations, self.messages = [], [], []
        self.on_step, self.on_evaluation = self.steps.append, self.evaluations.append
        self.on_message = self.messages.append

    def close(self):
        """Nothing to close."""


def recorded(config, resume=False):
    recorder = Recorder()
    train(config, resume=resume, hooks=lambda run: [recorder])
    return recorder


def weights(folder):
    model = load_model(folder)
    assert isinstance(model, MaskedLM)
    return model.state_dict()


def assert_close_weights(first, second, **tolerance):
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, **tolerance)


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [
        (AdamWConfig(lr=1e-2), {"schedules": {"lr": Schedule(kind="wsd", decay=0.3, shape="1-sqrt")}}),
        (StableAdamWConfig(lr=1e-2), {"schedules": {"objective.rate": Ramp(start=0.4, end=0.2)}}),
        (LionConfig(lr=1e-3), {"objective": MLMConfig(whole_word=True)}),
        (MuonConfig(lr=1e-2), {}),
    ],
    ids=lambda value: getattr(value, "kind", None) or "-".join(value),
)
def test_methods_learn_repeat_and_resume_to_the_bit(tmp_path, optimizer, stage):
    check_method(tmp_path, steps=24, learns=0.15, optimizer=optimizer, **stage)


def test_schedules_set_what_they_name_at_every_step(corpus, tmp_path):
    lr, rate = Schedule(kind="wsd", warmup=0.2, decay=0.5, final=0.1), Ramp(start=0.1, end=0.8)
    schedules = {"lr": lr, "objective.rate": rate, "optimizer.weight_decay": Ramp(start=0.0, end=0.0)}
    optimizer = AdamWConfig(lr=1e-2, layer_decay=0.5)
    steps = recorded(tiny_run(corpus.path, tmp_path / "run", steps=10, optimizer=optimizer, schedules=schedules)).steps
    expected = [lr((step + 1) / 10) for step in range(10)]
    assert [line["lr"] for line in steps] == pytest.approx([1e-2 * value for value in expected])
    assert expected[-1] == pytest.approx(0.1) and max(expected) == 1
    shares = [line["masked"] / line["step_tokens"] for line in steps]
    assert shares == pytest.approx([0.9 * rate((step + 1) / 10) for step in range(10)], abs=0.08)


def test_a_second_stage_grows_the_first_and_resumes(corpus, tmp_path, monkeypatch):
    (tmp_path / "growing.py").write_text(GROW)
    monkeypatch.syspath_prepend(str(tmp_path))
    sampling = Sampling(max_len=32, batch_tokens=512, micro_tokens=160, workers=0)
    long = Sampling(max_len=64, batch_tokens=256, workers=1)
    short = Stage(name="short", model=CALM, sampling=sampling, budget=Budget(steps=5))
    grown = Stage(name="grown", model=Previous(transform="growing:deepen"), sampling=long, budget=Budget(steps=5))
    last = Stage(name="last", model=Previous(), sampling=long, budget=Budget(steps=3), optimizer=AdamWConfig())

    def run(name):
        own = {"checkpoint_every": 2, "keep": 9, "eval_tokens": 256, "threads": 1, "device": "cpu"}
        return RunConfig(data=str(corpus.path), out=str(tmp_path / name), stages=(short, grown, last), **own)

    assert train(run("whole"), hooks=log_metrics) == tmp_path / "whole" / "model"
    assert load_model(tmp_path / "whole" / "model").config.depth == 2 * TINY_MODEL["depth"]
    whole = losses(tmp_path / "whole")
    assert len(whole) == 13

    for newest in ("step-00000005", "step-00000008", "step-00000010"):  # end of a stage, middle of one, end of one
        parts = tmp_path / newest
        shutil.copytree(tmp_path / "whole", parts)
        for later in (parts / "checkpoints").iterdir():
            if later.name > newest:
                shutil.rmtree(later)
        assert sorted(path.name for path in (parts / "checkpoints").iterdir())[-1] == newest
        train(run(newest), resume=True, hooks=log_metrics)
        assert losses(parts) == whole
        assert_close_weights(tmp_path / "whole" / "model", parts / "model", rtol=0, atol=0)


def test_the_loss_is_one_sum_however_uneven_the_micro_batches(corpus, tmp_path):
    def run(name, micro_tokens):
        sampling = Sampling(max_len=64, batch_tokens=700, micro_tokens=micro_tokens, workers=0)
        config = tiny_run(
            corpus.path, tmp_path / name, steps=5, model=CALM, sampling=sampling, optimizer=AdamWConfig(lr=1e-3)
        )
        return recorded(config).steps

    small, large = run("small", 64), run("large", 4096)
    assert {line["micro_batches"] for line in large} == {1}
    assert min(line["micro_batches"] for line in small) > 8
    for key in ("loss", "grad_norm", "accuracy"):
        assert [line[key] for line in small] == pytest.approx([line[key] for line in large], rel=2e-6, abs=1e-6)
    assert_close_weights(tmp_path / "small" / "model", tmp_path / "large" / "model", rtol=1e-4, atol=2e-6)


def test_a_token_budget_ends_within_half_a_step(corpus, tmp_path):
    steps = recorded(tiny_run(corpus.path, tmp_path / "run", budget=Budget(tokens=4200))).steps
    assert abs(steps[-1]["tokens"] - 4200) <= 256 + 40
    assert steps[-1]["progress"] == 1 and all(line["progress"] < 1 for line in steps[:-1])


@pytest.mark.parametrize("evaluation_seconds", [0.0, 0.25])
def test_a_time_budget_ends_on_time_with_the_schedule_finished(corpus, tmp_path, monkeypatch, evaluation_seconds):
    now, step_seconds, budget = 0.0, 0.3, 10.0

    def clocked(objective_loss):
        def loss(self, model, batch):
            nonlocal now
            if model.training:
                now += step_seconds
            return objective_loss(self, model, batch)

        return loss

    def evaluate(*arguments):
        nonlocal now
        now += evaluation_seconds
        return {"heldout_loss": 1.0, "heldout_accuracy": 0.0, "heldout_masked": 1}

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(pretraining, "evaluate", evaluate)
    monkeypatch.setattr(MLM, "loss", clocked(MLM.loss))
    sampling = Sampling(max_len=32, batch_tokens=128, micro_tokens=512, workers=0)
    config = tiny_run(
        corpus.path, tmp_path / "run", budget=Budget(seconds=budget), sampling=sampling, checkpoint_every=100
    )
    heard = recorded(config)
    assert abs(now - budget) <= step_seconds
    assert heard.steps[-1]["progress"] == 1
    assert heard.steps[-1]["lr"] == pytest.approx(config.stages[0].optimizer.lr * Schedule().final)
    progress = [line["progress"] for line in heard.steps]
    assert progress == sorted(progress)
    assert heard.evaluations[-1]["step"] == heard.steps[-1]["step"]
    assert heard.evaluations[-1]["seconds"] == pytest.approx(now)


def test_evaluations_come_ten_times_a_stage_or_as_often_as_asked(corpus, tmp_path):
    small = {"sampling": ONE_MICRO_BATCH, "checkpoint_every": 100}
    tenths = recorded(tiny_run(corpus.path, tmp_path / "tenths", steps=25, **small))
    assert [line["step"] for line in tenths.evaluations] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    asked = recorded(tiny_run(corpus.path, tmp_path / "asked", steps=7, eval_every=3, **small))
    assert [line["step"] for line in asked.evaluations] == [3, 6, 7]


def failing_at(step, change):
    """`MLM.loss` whose sum is `change`d in the micro-batches of one step; steps have one micro-batch."""
    original, calls = MLM.loss, 0

    def loss(self, model, batch):
        nonlocal calls
        result = original(self, model, batch)
        calls += model.training
        if not model.training or calls != step:
            return result
        return Loss(sum=change(result.sum), weight=result.weight, logs=result.logs)

    return loss


ONE_MICRO_BATCH = Sampling(max_len=32, batch_tokens=256, micro_tokens=2048, workers=0)


def test_a_loss_that_is_not_a_number_names_step_documents_and_the_last_good_checkpoint(corpus, tmp_path, monkeypatch):
    config = tiny_run(corpus.path, tmp_path / "run", steps=8, sampling=ONE_MICRO_BATCH, checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(MLM, "loss", failing_at(5, lambda total: total * float("nan")))
        with pytest.raises(RunError, match="^step 5: the loss is nan") as caught:
            train(config, hooks=log_metrics)
    named = caught.value.args[0]
    stream = pretraining.stage_stream(corpus, ONE_MICRO_BATCH, loop.derive(config.seed, "stage", 0))
    documents = stream.documents(4)
    assert f"documents of this step: {', '.join(map(str, documents[:20]))}" in named
    assert f"Last good checkpoint: {tmp_path / 'run' / 'checkpoints' / 'step-00000003'}" in named
    assert len(losses(tmp_path / "run")) == 4
    assert train(config, resume=True, hooks=log_metrics) is not None
    assert len(losses(tmp_path / "run")) == 8


def test_divergence_stops_before_the_diverged_state_is_saved(corpus, tmp_path):
    config = tiny_run(
        corpus.path,
        tmp_path / "run",
        steps=60,
        sampling=ONE_MICRO_BATCH,
        optimizer=AdamWConfig(lr=3.0),
        checkpoint_every=1,
        divergence=0.5,
    )
    with pytest.raises(RunError, match=r"^step \d+: the loss diverged: its running mean .* above its lowest") as caught:
        train(config, hooks=log_metrics)
    step = int(caught.value.args[0].split()[1].strip(":"))
    newest = latest_checkpoint(tmp_path / "run")
    assert newest.counters.total_steps == step - 1 and str(newest.path) in caught.value.args[0]
    assert newest.counters.smoothed_loss - newest.counters.lowest_loss <= 0.5


def test_weights_that_are_not_finite_are_no_checkpoint(corpus, tmp_path):
    absurd = {"optimizer": AdamWConfig(lr=1e39), "schedules": {"lr": Schedule(kind="constant", warmup=0.0)}}
    config = tiny_run(corpus.path, tmp_path / "run", steps=4, checkpoint_every=1, **absurd)
    with pytest.raises(RunError, match="^step 1: the update left weights that are not finite.*checkpoint: none yet"):
        train(config)
    assert latest_checkpoint(tmp_path / "run") is None


def disk_full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_can_go_on(config):
    checkpoints = sorted((path.name for path in (loop.Path(config.out) / "checkpoints").iterdir()), reverse=True)
    assert checkpoints and all(name.startswith("step-") for name in checkpoints)
    newest = latest_checkpoint(loop.Path(config.out))
    assert load_model(newest.path) and newest.optimizer_state()["state"]


def test_a_full_disk_leaves_the_checkpoint_before(corpus, tmp_path, monkeypatch):
    config = tiny_run(corpus.path, tmp_path / "run", steps=8, checkpoint_every=3)
    save, calls = torch.save, []

    def second_time(*arguments):
        calls.append(1)
        return save(*arguments) if len(calls) < 2 else disk_full()

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", second_time)
        with pytest.raises(RunError, match="the disk is full.*last checkpoint is intact.*--resume"):
            train(config, hooks=log_metrics)
    assert_can_go_on(config)
    assert train(config, resume=True, hooks=log_metrics) is not None


def test_a_small_disk_that_fills_up(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        config = tiny_run(corpus.path, disk / "run", steps=30, checkpoint_every=3, keep=30)
        with pytest.raises(RunError, match="the disk is full"):
            train(config, hooks=log_metrics)
        assert_can_go_on(config)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedules": {"objective.rat": Ramp(start=0.1, end=0.2)}}, "schedules.objective.rat: .*objective.rate"),
        ({"schedules": {"optimizer.betas": Ramp(start=0.1, end=0.2)}}, "schedules.optimizer.betas: .*known: lr"),
        ({"sampling": Sampling(max_len=32, batch_tokens=10**6)}, "one step takes .* prepare more text"),
        ({"model": Init(fields={"width": 12 * 2**16})}, r"needs about [\d.]+ GiB .* [\d.]+ GiB are free"),
        ({"model": Init(family="bert", fields=TINY_MODEL), "sampling": Sampling(max_len=65)}, "64 learned positions"),
        ({"model": Init(fields={"widht": 3})}, "model.fields.widht: unknown field: did you mean 'width'"),
        ({"model": FromFolder(path="/nowhere")}, "/nowhere: no such folder"),
        ({"optimizer": AdamWConfig(), "device": "cuda"}, "device: cuda was asked for"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(corpus, tmp_path, fields, message):
    if fields.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        train(tiny_run(corpus.path, tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"model": Previous(transform="nowhere:grow")}, "nowhere:grow.*module:function"),
        ({"model": Previous(transform="json:grow")}, "json:grow.*module:function"),
        ({"schedules": {"weight_decay": Ramp(start=0, end=1)}}, "schedules.weight_decay"),
        ({"sampling": Sampling(max_len=64, batch_tokens=10**6)}, "prepare more text"),
    ],
)
def test_a_later_stage_is_refused_before_the_first_begins(corpus, tmp_path, later, message):
    stages = (*tiny_run(corpus.path, tmp_path).stages, Stage(**{"name": "later", "model": Previous(), **later}))
    config = RunConfig(data=str(corpus.path), out=str(tmp_path / "run"), stages=stages, device="cpu", threads=1)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()
