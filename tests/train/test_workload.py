"""What the loop does with a workload's scores; pretraining as a workload."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from terrazzo.checkpoint import load_model
from terrazzo.errors import InputError
from terrazzo.optim import AdamWConfig
from terrazzo.testing import TINY_MODEL, log_metrics, losses, tiny_run
from terrazzo.train import Budget, Init, Previous, RunConfig, Sampling, Stage, train
from terrazzo.train.metrics import is_evaluation, read_metrics
from terrazzo.train.pretraining import Pretraining
from terrazzo.train.state import Counters, best_folder, latest_checkpoint

SMALL = Sampling(max_len=32, batch_tokens=256, micro_tokens=512, workers=0)
#: Learns for some steps, then too fast.
ROUGH = {"optimizer": AdamWConfig(lr=0.15), "sampling": SMALL, "divergence": 99.0}


def assert_same_weights(one, other):
    expected = load_model(other).state_dict()
    for name, tensor in load_model(one).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def evaluations(run):
    return [line for line in read_metrics(run / "metrics.jsonl") if is_evaluation(line)]


def test_a_corpus_given_as_workload_is_the_corpus_of_the_config(corpus, tmp_path):
    train(tiny_run(corpus.path, tmp_path / "named", sampling=SMALL), hooks=log_metrics)
    given = tiny_run("elsewhere", tmp_path / "given", sampling=SMALL)
    train(given, workload=Pretraining(corpus), hooks=log_metrics)
    assert losses(tmp_path / "named") == losses(tmp_path / "given")
    assert_same_weights(tmp_path / "named" / "model", tmp_path / "given" / "model")
    record = json.loads((tmp_path / "given" / "run.json").read_text())
    assert record["workload"] == {"kind": "pretraining"} and record["data_fingerprint"] == corpus.fingerprint


def test_the_score_of_pretraining_is_its_heldout_loss_and_decides_what_is_kept(corpus, tmp_path):
    run = tmp_path / "run"
    own = {"eval_every": 1, "checkpoint_every": 1, "keep": 99}
    train(tiny_run(corpus.path, run, steps=40, patience=3, keep_best=True, **ROUGH, **own), hooks=log_metrics)
    scores = [line["score"] for line in evaluations(run)]
    assert scores == [-line["heldout_loss"] for line in evaluations(run)]
    best = scores.index(max(scores)) + 1
    assert len(losses(run)) == best + 3 < 40
    assert_same_weights(run / "model", run / "checkpoints" / f"step-{best:08d}")
    counters = latest_checkpoint(run).counters
    assert (counters.best_step, counters.without_gain, counters.settled, counters.progress) == (best, 3, True, 1)


def test_a_later_stage_does_not_take_the_best_of_an_earlier_one(corpus, tmp_path):
    first = Stage(name="a", model=Init(fields=TINY_MODEL), budget=Budget(steps=4), sampling=SMALL, keep_best=True)
    second = Stage(
        name="b",
        model=Previous(),
        budget=Budget(steps=6),
        keep_best=True,
        **{name: value for name, value in ROUGH.items() if name != "divergence"},
    )

    def two(name):
        own = {"eval_every": 2, "checkpoint_every": 3, "keep": 9, "eval_tokens": 256, "threads": 1, "device": "cpu"}
        stages = (first, second)
        return RunConfig(data=str(corpus.path), out=str(tmp_path / name), stages=stages, divergence=99.0, **own)

    train(two("whole"), hooks=log_metrics)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for folder in (tmp_path / "parts" / "checkpoints").iterdir():
        if folder.name > "step-00000004":
            shutil.rmtree(folder)
    train(two("parts"), resume=True, hooks=log_metrics)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts" / "model", tmp_path / "whole" / "model")


def test_a_best_folder_of_another_moment_is_refused(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"stage": 0, "step": 5, "score": 1.0}')
    assert best_folder(tmp_path, Counters(best_step=5)) == tmp_path / "best"
    for counters in (Counters(best_step=6), Counters(stage=1, best_step=2)):
        with pytest.raises(InputError, match="does not hold the weights of step"):
            best_folder(tmp_path, counters)


def test_a_score_that_is_not_a_number_is_no_gain():
    counters = Counters()
    gains = [counters.judge(score) for score in (float("nan"), 0.2, 0.2, float("nan"), 0.3)]
    assert gains == [False, True, False, False, True]
    assert counters.without_gain == 0 and counters.best_score == 0.3
