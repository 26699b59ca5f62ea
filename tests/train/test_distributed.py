"""Several processes on gloo do what one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from terrazzo.checkpoint import load_model
from terrazzo.errors import RunError
from terrazzo.optim import MuonConfig
from terrazzo.testing import TINY_MODEL, log_metrics, start_ranks, tiny_run, train_on_ranks
from terrazzo.train import Budget, Init, Previous, RunConfig, Sampling, Stage, train
from terrazzo.train.distributed import Ranks, joined
from terrazzo.train.metrics import read_metrics
from terrazzo.train.state import latest_checkpoint

CALM = Init(fields={**TINY_MODEL, "dropout": 0.0})
UNEVEN = Sampling(max_len=48, batch_tokens=300, micro_tokens=100, workers=0)
SRC = Path(__file__).parents[2] / "src"


def run_of(data, out, **fields):
    """Two stages, so that a model passes from one to the next on every rank."""
    common = {"sampling": UNEVEN, "optimizer": MuonConfig(lr=3e-3)}
    first = Stage(name="first", model=CALM, budget=Budget(steps=2), **common)
    second = Stage(name="second", model=Previous(), budget=Budget(steps=5), **common)
    own = {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 5, "eval_tokens": 300, "keep": 9}
    return RunConfig(data=str(data), out=str(out), stages=(first, second), **{**own, **fields})


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The run by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run_of(corpus.path, run), hooks=log_metrics)
    return run


def assert_same_course(run, alone):
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run, alone))
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        for key in ("step", "tokens", "masked", "heldout_masked"):
            assert own.get(key) == other.get(key)
        for key in ("loss", "grad_norm", "accuracy", "heldout_loss"):
            assert own.get(key) == pytest.approx(other.get(key), abs=1e-5), (own["step"], key)
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (run, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5, msg=name)


def die_after(run, step):
    """Make a finished run one whose last checkpoint is that of `step`."""
    shutil.rmtree(run / "model")
    for folder in (run / "checkpoints").iterdir():
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)


def test_ddp_equals_one_process(corpus, alone, tmp_path):
    train_on_ranks(run_of(corpus.path, tmp_path / "run"))
    assert_same_course(tmp_path / "run", alone)


def test_fsdp2_equals_one_process_and_each_resumes_the_other(corpus, alone, tmp_path):
    run = tmp_path / "run"
    sharded, single = run_of(corpus.path, run, distributed="fsdp2"), run_of(corpus.path, run)
    train_on_ranks(sharded)
    assert_same_course(run, alone)
    die_after(run, 5)
    train(single, resume=True, hooks=log_metrics)
    assert_same_course(run, alone)
    die_after(run, 5)
    train_on_ranks(sharded, resume=True)
    assert_same_course(run, alone)


def test_a_lost_rank_ends_the_others(corpus, tmp_path):
    config = tiny_run(corpus.path, tmp_path / "run", steps=100_000, checkpoint_every=5)
    first, second = start_ranks(config)
    wait_for(tmp_path / "run" / "metrics.jsonl", 8, first.is_alive)
    os.kill(second.pid, signal.SIGKILL)
    first.join(120)
    assert first.exitcode not in (None, 0)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(corpus, tmp_path):
    config = tiny_run(corpus.path, tmp_path / "run", steps=100_000, checkpoint_every=100_000)
    ranks = start_ranks(config)
    wait_for(tmp_path / "run" / "metrics.jsonl", 3, ranks[0].is_alive)
    os.kill(ranks[1].pid, signal.SIGTERM)
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert latest_checkpoint(tmp_path / "run").counters.total_steps == steps[-1]


def test_torchrun_with_a_killed_rank_says_so(corpus, tmp_path):
    model = "{" + ", ".join(f"{key} = {value}" for key, value in TINY_MODEL.items()) + "}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "terrazzo"]
    command += ["pretrain", "--data", str(corpus.path), "--out", str(tmp_path / "run"), "--budget", "1000000steps"]
    command += ["--set", f"model.fields={model}", "--set", "sampling.batch_tokens=512", "--set", "checkpoint_every=5"]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl", 8, lambda: launcher.poll() is None)
        ranks = sorted(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))
        second = next(pid for pid in ranks if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(second, signal.SIGKILL)
        assert launcher.wait(240) != 0
    finally:
        launcher.kill()
        launcher.wait()
    said = (tmp_path / "log").read_text()
    assert "terrazzo: another rank stopped answering" in said
    assert "start the same command with --resume to go on from the last checkpoint" in said
    assert latest_checkpoint(tmp_path / "run").counters.total_steps % 5 == 0


def wait_for(metrics, lines, alive, seconds=240):
    deadline = time.monotonic() + seconds
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_only_broken_collectives_are_called_a_lost_rank(monkeypatch):
    with pytest.raises(RuntimeError, match="^connection to my own thing$"), joined("cpu"):
        raise RuntimeError("connection to my own thing")
    alone = Ranks(0, 1, torch.device("cpu"))
    assert alone.sum(1.5, 2) == [1.5, 2] and alone.smallest(3) == 3
    monkeypatch.setattr("terrazzo.train.distributed.dist.init_process_group", lambda *a, **k: None)
    monkeypatch.setattr("terrazzo.train.distributed.dist.new_group", lambda *a, **k: None)
    monkeypatch.setattr("terrazzo.train.distributed.dist.destroy_process_group", lambda *a, **k: None)
    monkeypatch.setattr("terrazzo.train.distributed.dist.get_rank", lambda: 0)
    monkeypatch.setattr("terrazzo.train.distributed.dist.get_world_size", lambda: 2)
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(RunError, match="^another rank stopped answering .Connection closed by peer"), joined("cpu"):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RunError, match="^step 3: timed out$"), joined("cpu"):
        raise RunError("step 3: timed out")
    with pytest.raises(RuntimeError, match="^shapes differ$"), joined("cpu"):
        raise RuntimeError("shapes differ")
