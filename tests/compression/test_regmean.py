"""Merging by least squares: what one matrix can give on every task's inputs."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression import regmean as room
from terrazzo.compression.regmean import inputs_of, regmean
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed
from terrazzo.testing import TINY_MODEL


@pytest.fixture
def made():
    torch.manual_seed(0)
    config = bert("tiny", 50, **TINY_MODEL).replace(dropout=0.0, attention_dropout=0.0)
    encoders = {name: Encoder(config).eval() for name in ("one", "other")}
    texts = {"one": range(20), "other": range(10, 40)}
    batches = {
        name: [Packed.from_sequences([torch.tensor(own)[torch.randint(len(own), (9,))] for _ in range(60)])]
        for name, own in texts.items()
    }
    states = {name: encoder.state_dict() for name, encoder in encoders.items()}
    return states, batches, {name: inputs_of(encoders[name], batches[name]) for name in encoders}


def test_each_matrix_is_the_least_squares_solution(made, monkeypatch) -> None:
    monkeypatch.setattr(room, "SHRINK", 1.0)
    states, _, inputs = made
    weights = {"one": 1.0, "other": 2.0}
    merged = regmean(states, inputs, weights)
    key = "blocks.0.mlp.up.weight"

    def error(weight_OI):
        total = 0.0
        for name, factor in weights.items():
            off = weight_OI.double() - states[name][key].double()
            moments = inputs[name].moments[key]
            total += factor * float((off @ moments.gram_FF * off).sum()) / moments.tokens
        return total

    best = error(merged[key])
    assert best < 0.9 * error((states["one"][key] + states["other"][key]) / 2)
    for seed in range(5):
        nudge = torch.randn(merged[key].shape, generator=torch.Generator().manual_seed(seed))
        assert error(merged[key] + 1e-2 * nudge) > best


def test_tokens_that_one_task_alone_has_are_its_own(made) -> None:
    states, _, inputs = made
    table = regmean(states, inputs, {"one": 1.0, "other": 1.0})["embeddings.tokens.weight"]
    one, other = (states[name]["embeddings.tokens.weight"] for name in ("one", "other"))
    assert_close(table[5], one[5], atol=1e-4, rtol=0)
    assert_close(table[35], other[35], atol=1e-4, rtol=0)
    assert_close(table[45], (one[45] + other[45]) / 2)
    counts = [inputs[name].counts_V / inputs[name].counts_V.sum() for name in ("one", "other")]
    share = float(counts[0][15] / (counts[0][15] + counts[1][15]))
    assert_close(table[15], share * one[15] + (1 - share) * other[15], atol=1e-4, rtol=0)


def test_equal_fine_tunings_merge_into_themselves(made) -> None:
    states, _, inputs = made
    same = {"one": states["one"], "other": states["one"]}
    for name, tensor in regmean(same, inputs, {"one": 1.0, "other": 3.0}).items():
        assert_close(tensor, states["one"][name], atol=1e-4, rtol=1e-4)


def test_a_fine_tuning_without_inputs_is_refused(made) -> None:
    states, _, inputs = made
    with pytest.raises(InputError, match="no inputs of other"):
        regmean(states, {"one": inputs["one"]}, {"one": 1.0, "other": 1.0})
