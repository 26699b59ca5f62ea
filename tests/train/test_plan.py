"""What a run will take, before it runs."""

from __future__ import annotations

import dataclasses

import pytest

from terrazzo.errors import InputError
from terrazzo.nn import parameter_count, training_flops
from terrazzo.optim import AdamWConfig
from terrazzo.testing import TINY_MODEL, tiny_run
from terrazzo.train import Budget, Init, Previous, RunConfig, Sampling, Stage, plan
from terrazzo.train.pretraining import stage_stream


def config_of(corpus, tmp_path, budget, **fields):
    return tiny_run(corpus.path, tmp_path / "run", budget=budget, optimizer=AdamWConfig(), **fields)


def test_tokens_steps_and_passes_follow_from_the_data(corpus, tmp_path):
    sampling = Sampling(max_len=32, batch_tokens=512, workers=0)
    (planned,) = plan(config_of(corpus, tmp_path, Budget(tokens=200_000), sampling=sampling), hardware="h200")
    stream = stage_stream(corpus, sampling, seed=0)
    total = stream.pieces.num_tokens
    assert planned.steps == pytest.approx(200_000 / 512, rel=0.1)
    assert planned.tokens == pytest.approx(200_000, rel=0.01)
    assert planned.epochs == pytest.approx(200_000 / total, rel=0.05)


def test_flops_time_and_cost_follow_from_the_steps(corpus, tmp_path):
    steps = config_of(corpus, tmp_path, Budget(steps=1000), price_per_hour=3.0)
    (planned,) = plan(steps, hardware="a100")
    encoder = Init(fields=TINY_MODEL).encoder_config(corpus.vocab_size)
    lengths = stage_stream(corpus, steps.stages[0].sampling, steps.seed).step(0).lengths
    one_step = training_flops(encoder, lengths, round(0.3 * lengths.sum()))
    assert planned.steps == 1000 and planned.parameters == parameter_count(encoder)
    assert planned.flops == pytest.approx(1000 * one_step, rel=0.1)
    assert planned.seconds == pytest.approx(planned.flops / (0.4 * 312e12))
    assert planned.cost == pytest.approx(3.0 * planned.seconds / 3600)
    assert planned.share_of_peak == pytest.approx(0.4) and not planned.measured
    (unpriced,) = plan(dataclasses.replace(steps, price_per_hour=None), hardware="a100")
    assert unpriced.cost is None


def test_a_time_budget_says_how_many_steps_fit(corpus, tmp_path):
    (one,) = plan(config_of(corpus, tmp_path, Budget(steps=1)), hardware="h100")
    (timed,) = plan(config_of(corpus, tmp_path, Budget(seconds=1000 * one.step_seconds + 1e-9)), hardware="h100")
    assert timed.steps == 1000


def test_this_machine_is_measured_and_left_as_it_was(corpus, tmp_path):
    small = config_of(corpus, tmp_path, Budget(steps=10), price_per_hour=1.0)
    later = Stage(name="later", model=Previous(), budget=Budget(steps=5), sampling=small.stages[0].sampling)
    config = dataclasses.replace(small, stages=(*small.stages, later))
    first, second = plan(config, probe_seconds=0.1)
    assert (first.name, second.name) == ("pretrain", "later") and first.measured and second.measured
    assert first.parameters == second.parameters
    assert first.seconds == pytest.approx(10 * first.step_seconds) and 0 < first.share_of_peak < 1
    assert first.micro_tokens == 160 and 0 < first.memory_bytes < first.available_bytes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "hardware", "message"),
    [
        ({}, "h20", "hardware 'h20': known: h200, h100, a100"),
        ({"sampling": Sampling(batch_tokens=10**7)}, "h200", "prepare more text"),
        ({"model": Init(fields={"width": 12 * 2**16})}, None, r"needs about [\d.]+ GiB .* are free"),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse(corpus, tmp_path, fields, hardware, message):
    with pytest.raises(InputError, match=message):
        plan(config_of(corpus, tmp_path, Budget(steps=5), **fields), hardware=hardware)


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such data folder"):
        plan(RunConfig(data=str(tmp_path / "nowhere"), out="RUN"), hardware="h200")
