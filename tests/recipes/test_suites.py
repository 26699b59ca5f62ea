from __future__ import annotations

import gzip
import json

import pytest
import torch

from recipes.bertuit.downstream import invented_rows, with_tags, write_rows
from recipes.suites import Encoders, Trial, gain, scores, try_arms
from recipes.tuning import untrained, untrained_like
from terrazzo.checkpoint import load_config, load_model
from terrazzo.errors import InputError
from terrazzo.tasks.suites import TaskOutcome
from terrazzo.testing import tiny_texts


def outcomes(*values):
    return [TaskOutcome(name="t", title="T", metrics=("f1",), score=value) for value in values]


def test_a_gain_stands_beside_the_widest_range_of_either_arm():
    found = {
        "ours": {"a-b": outcomes(0.50, 0.54, 0.58), "ours-alone": outcomes(1, 1, 1)},
        "theirs": {"a-b": outcomes(0.61, 0.60, 0.59)},
    }
    assert gain("x", found, "ours", "theirs") == {
        "x_gain_a_b": pytest.approx([-11, -6, -1]),
        "x_difference_a_b": pytest.approx(6),
        "x_spread_a_b": pytest.approx(8),
    }
    assert scores(found)["theirs_a_b"] == pytest.approx([61, 60, 59])


def test_an_untrained_encoder_is_equal_in_all_but_its_weights(tmp_path):
    model = untrained(tmp_path / "given", tiny_texts(20))
    found = [untrained_like(model, tmp_path / str(seed), seed) for seed in (0, 1)]
    assert load_config(found[0]) == load_config(found[1]) == load_config(model)
    assert (found[0] / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    first, second = (load_model(folder).encoder.embeddings.tokens.weight for folder in found)
    assert not torch.allclose(first, second) and untrained_like(model, found[0], 1) == found[0]


def test_every_encoder_is_tuned_with_seeds_of_its_own_and_missing_rows_are_named(tmp_path):
    root = invented_rows([f"La vecina {'canta' if i % 3 else 'baila mucho'} hoy {i}" for i in range(64)], tmp_path)
    model = untrained(tmp_path / "model", tiny_texts(20))
    trial = Trial(suite="spanish", procedures={"emoji": {"epochs": 0.5, "max_len": 16, "lr": [1e-3]}}, runs=2)
    arms = {"one": Encoders([model, model], root, ("emoji",)), "other": Encoders([model], root, ("emoji",))}
    found = try_arms(trial, arms, tmp_path / "out", 0, lambda line: None)
    assert [[run.seed for run in outcome.runs] for outcome in found["one"]["emoji"]] == [[0, 1], [2, 3]]
    assert found["one"]["emoji"][0].runs == found["other"]["emoji"][0].runs
    (root / "spanish_tweets" / "emojispace.test.json.gz").unlink()
    with pytest.raises(InputError, match="emojispace"):
        try_arms(trial, arms, tmp_path / "again", 0, lambda line: None)


def test_rows_read_as_the_preset_leaves_tweets_and_none_goes(tmp_path):
    invented_rows(["Hola"] * 64, tmp_path)
    rows = [{"text": t, "klass": "a"} for t in ("@ana Mira https://t.co/x &amp; ven", "_usr _url")]
    write_rows(tmp_path / "spanish_tweets" / "emojispace.test.json.gz", rows)
    folder = with_tags(tmp_path, tmp_path / "tagged")
    lines = gzip.decompress((folder / "spanish_tweets" / "emojispace.test.json.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": "<usr> Mira <url> & ven", "klass": "a"},
        {"text": "<usr> <url>", "klass": "a"},
    ]
    assert (folder / "nltk_corpora" / "conll2002.zip").is_file()
