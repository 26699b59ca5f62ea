"""Interrupted runs: killed, stopped, resumed, and refused."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from terrazzo.checkpoint import load_model
from terrazzo.data import Corpus
from terrazzo.errors import InputError
from terrazzo.optim import AdamWConfig
from terrazzo.testing import TINY_MODEL, log_metrics, losses, start_ranks, tiny_corpus, tiny_run
from terrazzo.train import Init, Sampling, memory, train
from terrazzo.train.metrics import read_metrics
from terrazzo.train.state import latest_checkpoint, save

STEPS = 24
SAMPLING = Sampling(max_len=32, batch_tokens=256, micro_tokens=160, workers=1)


def config_of(data, out, **fields):
    return tiny_run(data, out, **{"steps": STEPS, "sampling": SAMPLING, "checkpoint_every": 5, **fields})


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config_of(corpus.path, run), hooks=log_metrics)
    return run


@pytest.fixture
def half(corpus, whole, tmp_path):
    """The same run as if its process had died right after step 20 was saved."""
    run = tmp_path / "half"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    shutil.rmtree(run / "model")
    return run


def course(run):
    """All that metrics.jsonl says but times."""
    clock = {"seconds", "step_seconds", "tokens_per_second", "peak_fraction"}
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def assert_same_run(run, whole):
    assert course(run) == course(whole)
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (run, whole))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class SignalAt:
    """A hook that sends this process a signal during a step."""

    def __init__(self, step, number):
        self.step, self.number, self.messages = step, number, []

    def on_step(self, line):
        if line["step"] == self.step:
            os.kill(os.getpid(), self.number)

    def on_evaluation(self, line):
        """Nothing."""

    def on_message(self, text):
        self.messages.append(text)

    def close(self):
        """Nothing."""


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 7), (signal.SIGINT, 12), (signal.SIGTERM, STEPS)])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(corpus, whole, tmp_path, number, step):
    config, hook = config_of(corpus.path, tmp_path / "run"), SignalAt(step, number)
    before = signal.getsignal(number)
    assert train(config, hooks=lambda run: [*log_metrics(run), hook]) is None
    assert signal.getsignal(number) == before
    assert hook.messages[-1] == f"stopped by {number.name}"
    assert latest_checkpoint(tmp_path / "run").counters.total_steps == step
    assert not (tmp_path / "run" / "model").exists()
    assert train(config, resume=True, hooks=log_metrics) == tmp_path / "run" / "model"
    assert losses(tmp_path / "run") == losses(whole)
    assert course(tmp_path / "run")[-1] == course(whole)[-1], "the last evaluation"
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_second_interrupt_does_not_wait(corpus, tmp_path):
    class Impatient(SignalAt):
        def on_step(self, line):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config_of(corpus.path, tmp_path / "run"), hooks=lambda run: [Impatient(1, signal.SIGINT)])


def test_kill_at_an_arbitrary_moment_loses_at_most_the_steps_since_the_checkpoint(corpus, whole, tmp_path):
    config = config_of(corpus.path, tmp_path / "run")
    (process,) = start_ranks(config, 1)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 9:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    lost = read_metrics(metrics)[-1]["step"] - latest_checkpoint(tmp_path / "run").counters.total_steps
    assert 0 <= lost <= 5
    train(config, resume=True, hooks=log_metrics)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(corpus, whole, half):
    shutil.rmtree(half / "checkpoints")
    train(config_of(corpus.path, half), resume=True, hooks=log_metrics)
    assert_same_run(half, whole)


def test_half_written_checkpoints_are_passed_over_and_removed(corpus, whole, half):
    checkpoints = half / "checkpoints"
    shutil.copytree(checkpoints / "step-00000020", checkpoints / ".step-00000022.4194304.tmp")
    (checkpoints / ".step-00000021.4194304.tmp").mkdir()
    with open(half / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "lo')
    assert latest_checkpoint(half).counters.total_steps == 20
    train(config_of(corpus.path, half), resume=True, hooks=log_metrics)
    assert_same_run(half, whole)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000020", "step-00000024"]


def test_checkpoints_are_kept_as_many_as_asked(corpus, half):
    train(config_of(corpus.path, half, checkpoint_every=1, keep=3), resume=True, hooks=log_metrics)
    assert sorted(path.name for path in (half / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in (22, 23, 24)]


def test_the_micro_batch_of_the_beginning_is_kept_whatever_memory_is_free(corpus, tmp_path, monkeypatch):
    sampling = dataclasses.replace(SAMPLING, micro_tokens=None)
    config = config_of(corpus.path, tmp_path / "run", steps=4, sampling=sampling, checkpoint_every=2)
    monkeypatch.setattr(memory, "FAST_TOKENS", {"cpu": 64})
    train(config, hooks=log_metrics)
    lines = course(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    monkeypatch.setattr(memory, "FAST_TOKENS", {"cpu": 4096})
    train(config, resume=True, hooks=log_metrics)
    assert course(tmp_path / "run") == lines and lines[0]["micro_batches"] > 3


def test_only_what_changes_nothing_may_change(corpus, whole, half, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(corpus.path, moved)
    free = config_of(moved, half, checkpoint_every=7, keep=1, price_per_hour=2.0)
    train(free, resume=True, hooks=log_metrics)
    assert_same_run(half, whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": AdamWConfig(lr=0.5)}, "stages.0.optimizer"),
        ({"model": Init(fields={**TINY_MODEL, "depth": 3})}, "stages.0.model.fields.depth = 2, not 3"),
        ({"steps": 99}, f"stages.0.budget.steps = {STEPS}, not 99"),
        ({"seed": 3}, "seed = 17, not 3"),
    ],
)
def test_resuming_with_another_config_names_the_field(corpus, half, fields, message):
    before = contents(half)
    with pytest.raises(InputError, match=f"was begun with {re.escape(message)}.*resume it with the same value"):
        train(config_of(corpus.path, half, **fields), resume=True)
    assert contents(half) == before


def test_resuming_on_other_data_is_refused(half, tmp_path):
    before, other = contents(half), tiny_corpus(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=f"{other.path}: the data differs from what {half} was trained on"):
        train(config_of(other.path, half), resume=True)
    assert contents(half) == before


def test_a_folder_that_holds_something_else_is_left_as_it_is(corpus, half, tmp_path):
    before = contents(half)
    with pytest.raises(InputError, match=f"{half} holds a run: choose another --out, or go on with --resume"):
        train(config_of(corpus.path, half))
    assert contents(half) == before
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("dear")
    with pytest.raises(InputError, match="holds other files"):
        train(config_of(corpus.path, letters))
    with pytest.raises(InputError, match="dear.txt is a file"):
        train(config_of(corpus.path, letters / "dear.txt"))
    with pytest.raises(InputError, match="cannot be made"):
        train(config_of(corpus.path, letters / "dear.txt" / "run"))
    with pytest.raises(InputError, match="not a run folder"):
        train(config_of(corpus.path, letters), resume=True)
    assert contents(letters) == {Path("dear.txt"): b"dear"}


def test_two_processes_do_not_work_on_one_run(corpus, half):
    class Intruder(SignalAt):
        def on_step(self, line):
            if line["step"] == self.step:
                with pytest.raises(InputError, match=f"{half}: another process is at work on this run"):
                    train(config_of(corpus.path, half), resume=True)
                self.messages.append("refused")

    hook = Intruder(22, None)
    train(config_of(corpus.path, half), resume=True, hooks=lambda run: [*log_metrics(run), hook])
    assert hook.messages[-1] == "refused" and len(losses(half)) == STEPS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b"PK"),
        ("optimizer.pt", b""),
        ("counters.json", b"[]"),
        ("counters.json", b"{"),
        ("model.safetensors", b""),
    ],
)
def test_a_damaged_checkpoint_is_named(corpus, half, name, content):
    file = half / "checkpoints" / "step-00000020" / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(file))):
        train(config_of(corpus.path, half), resume=True, hooks=log_metrics)


def test_a_damaged_shard_is_named_before_training(corpus, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus.path, data)
    shard = data / "train-00000.tokens.npy"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert Corpus.open(data).train.num_documents
    with pytest.raises(InputError, match=f"{shard}: damaged: its content does not match the checksum"):
        train(config_of(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_record_of_a_run_says_what_it_is(corpus, whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["data_fingerprint"] == corpus.fingerprint and record["world_size"] == 1
    trained = json.loads((whole / "model" / "terrazzo.json").read_text())
    assert trained["trained"]["steps"] == STEPS and trained["run"]["config"] == record["config"]


def test_a_full_disk_under_the_optimizer_state_is_told_as_such(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        save({"state": torch.zeros(1000)}, Full())
