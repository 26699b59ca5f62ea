"""Where a run's config comes from: a file, shared fields, `key=value`; and the budgets in it."""

from __future__ import annotations

import json

import pytest

from terrazzo.config import read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.optim import AdamWConfig, LionConfig, MuonConfig, Ramp, Schedule
from terrazzo.train import Budget, FromFolder, Init, Previous, RunConfig, resolve

BASE = {"data": "DATA", "out": "RUN"}
TOML = """
data = "DATA"
out = "RUN"
seed = 3
optimizer = { kind = "lion", lr = 1e-4 }
clip_norm = 0.5

[model]
family = "bert"
size = "tiny"

[schedules.lr]
kind = "wsd"

[schedules."objective.rate"]
start = 0.3
end = 0.15

[[stages]]
budget = { steps = 10 }
sampling = { max_len = 64 }

[[stages]]
budget = { tokens = 5000 }
optimizer = { kind = "adamw" }
"""


def test_a_toml_file_with_shared_fields_and_stages(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    run = resolve(read_file(tmp_path / "run.toml"))
    first, second = run.stages
    assert run.seed == 3
    assert (first.name, second.name) == ("pretrain", "stage-1")
    assert first.model == Init(family="bert", size="tiny") and second.model == Previous()
    assert first.optimizer == LionConfig(lr=1e-4) and second.optimizer == AdamWConfig()
    assert first.clip_norm == second.clip_norm == 0.5
    assert first.sampling.max_len == 64 and second.sampling.max_len == 128
    assert (first.budget, second.budget) == (Budget(steps=10), Budget(tokens=5000))
    for stage in run.stages:
        assert stage.schedules == {"lr": Schedule(kind="wsd"), "objective.rate": Ramp(start=0.3, end=0.15)}


def test_assignments_reach_the_stages_they_mean(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    assignments = [
        "model.size=mini",
        "clip_norm=2",
        "stages.1.sampling.max_len=32",
        "schedules.objective.rate.end=0.2",
        "stages.1.model.kind=folder",
        'stages.1.model.path="M=1"',
        "checkpoint_every=7",
    ]
    run = resolve(read_file(tmp_path / "run.toml"), assignments)
    first, second = run.stages
    assert first.model == Init(family="bert", size="mini") and second.model == FromFolder(path="M=1")
    assert (first.clip_norm, second.clip_norm, run.checkpoint_every) == (2, 2, 7)
    assert (first.sampling.max_len, second.sampling.max_len) == (64, 32)
    assert [stage.schedules["objective.rate"].end for stage in run.stages] == [0.2, 0.2]


def test_a_run_of_one_stage_needs_no_stages():
    run = resolve(
        {**BASE, "budget": {"steps": 5}}, ["optimizer.lr=0.01", "schedules.lr.warmup=0.5", "objective.rate=0.2"]
    )
    (stage,) = run.stages
    assert stage.budget == Budget(steps=5) and stage.objective.rate == 0.2
    assert stage.optimizer == MuonConfig(lr=0.01) and stage.schedules == {"lr": Schedule(warmup=0.5)}
    assert resolve(BASE) == RunConfig(**BASE)


def test_a_resolved_config_survives_json(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    run = resolve(read_file(tmp_path / "run.toml"))
    assert resolve(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("values", "assignments", "message"),
    [
        ({"optimzer": {}}, [], "file: unknown key 'optimzer': did you mean 'optimizer'"),
        ({}, ["sampeling.max_len=3"], "unknown key 'sampeling': did you mean 'sampling'"),
        ({}, ["optimizer.rl=1"], "unknown key .*rl'.*did you mean 'lr'"),
        ({}, ["sampling.maxlen=3"], "unknown key 'stages.0.sampling.maxlen': did you mean 'max_len'"),
        ({}, ["model.size=smal"], "size 'smal': did you mean 'small'"),
        ({}, ["model.family=brt"], "family 'brt': did you mean 'bert'"),
        ({}, ["optimizer.kind=adam"], "adam.*adamw"),
        ({}, ["sampling.max_len=long"], "stages.0.sampling.max_len: .*integer.*'long'"),
        ({}, ["sampling.max_len=2"], "max_len must be at least 3, got 2"),
        ({}, ["sampling.workers=-1"], "workers must be at least 0"),
        ({}, ["eval_every=0"], "eval_every must be at least 1, got 0"),
        ({}, ["keep=0"], "keep must be at least 1, got 0"),
        ({}, ["seed"], "--set seed: write it as key=value"),
        ({}, ["stages.1.sampling.max_len=3"], "'1' is not one of the 1 items"),
        ({}, ["stages.one.sampling.max_len=3"], "'one' is not one of the 1 items"),
        ({}, ["seed.x=3"], "seed: .*integer"),
        ({"seed": 1}, ["seed.x=3"], "'seed' holds 1, which has no fields"),
        ({"stages": []}, [], "stages: a run needs at least one"),
        ({"stages": {"a": 1}}, [], "stages: a list of tables"),
        ({"model": {"kind": "previous"}}, [], "the first stage has no previous one"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, [], "stages.1.name: 'a' is the name of an earlier stage"),
        ({"budget": {"steps": 1, "tokens": 2}}, [], "one positive number of steps, tokens or seconds"),
        ({"budget": {}}, [], "one positive number of steps, tokens or seconds"),
        ({"budget": {"seconds": 0}}, [], "one positive number"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(values, assignments, message):
    with pytest.raises(InputError, match=message):
        resolve({**BASE, **values}, assignments, "file")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3000steps", Budget(steps=3000)),
        ("1 step", Budget(steps=1)),
        ("2ksteps", Budget(steps=2000)),
        ("20Mtok", Budget(tokens=20_000_000)),
        ("1.5Gtok", Budget(tokens=1_500_000_000)),
        ("1Btokens", Budget(tokens=1_000_000_000)),
        ("90s", Budget(seconds=90)),
        ("10m", Budget(seconds=600)),
        ("10min", Budget(seconds=600)),
        ("2h", Budget(seconds=7200)),
        (" 0.5d ", Budget(seconds=43_200)),
    ],
)
def test_budgets_are_written_as_people_write_them(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "10", "ten minutes", "10 Mm", "-3steps", "3e3steps", "10x", "0steps", "0.2steps", "2Mh"]
)
def test_other_budgets_are_refused(text):
    with pytest.raises(InputError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_norm": -1}, "clip_norm must be above 0"),
        ({"divergence": 0}, "divergence must be above 0"),
        ({"price_per_hour": -2.5}, "price_per_hour must not be negative"),
        ({"threads": 10**11}, "threads must be at most 4096"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        resolve({**BASE, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "glue"}, "model.fields: activation: .*'gelu'.*got 'glue'"),
        ({"depth": 1.5}, "model.fields: depth: .*integer"),
        ({"num_heads": 0}, "model.fields: num_heads must be at least 1"),
        ({"init_std": float("nan")}, "model.fields: init_std: .*finite"),
        ({"vocab_size": 5}, "model.fields.vocab_size: the data's tokenizer decides it"),
        ({"widht": 5}, "model.fields.widht: unknown field: did you mean 'width'"),
    ],
)
def test_fields_of_a_new_encoder_are_checked_before_it_is_built(fields, message):
    with pytest.raises(InputError, match=message):
        Init(size="tiny", fields=fields).encoder_config(vocab_size=64)
