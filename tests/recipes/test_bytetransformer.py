from __future__ import annotations

import dataclasses
from statistics import fmean

import numpy as np
import pytest
import torch

from recipes.bytetransformer import recipe
from recipes.bytetransformer.graph import openvino_arms
from recipes.bytetransformer.mixes import PUBLISHED, draw_lengths, draw_mix
from recipes.bytetransformer.speed import Spent, attention_arms, torch_arms
from recipes.bytetransformer.table import Cell, table
from recipes.claims import RECIPES, read_recipe
from recipes.runner import Context
from terrazzo.nn import Encoder
from terrazzo.nn.flops import forward_flops

SETTINGS = dataclasses.replace(recipe.TIERS["smoke"], longest=(24,))


@pytest.fixture
def mix():
    return draw_mix(np.random.default_rng(0), 5, 24, 0.6, SETTINGS.vocab_size, torch.device("cpu"))


@pytest.mark.parametrize("share", recipe.SHARES)
def test_lengths_average_the_share_of_the_longest(share):
    lengths = draw_lengths(np.random.default_rng(0), 20_000, 512, share)
    assert lengths.min() >= 1 and lengths.max() <= 512
    assert lengths.mean() == pytest.approx(share * 512, rel=0.02)


def test_every_arm_gives_the_same_states_of_real_tokens(mix, tmp_path):
    encoder = Encoder(recipe.architecture(SETTINGS)).eval()
    with torch.inference_mode():
        arms = torch_arms(encoder, tmp_path) | openvino_arms(encoder)
        outputs = {name: mix.real(arm(mix)) for name, arm in arms.items()}
    assert outputs.keys() == {"packed", "padded", "transformers", "openvino", "openvino_padded"}
    for output in outputs.values():
        torch.testing.assert_close(output, outputs["packed"], rtol=0, atol=1e-5)


def test_padding_changes_nothing_that_is_compared(mix, tmp_path):
    encoder = Encoder(recipe.architecture(SETTINGS)).eval()
    arm = torch_arms(encoder, tmp_path)["padded"]
    other = dataclasses.replace(mix, ids_BS=torch.where(mix.mask_BS.bool(), mix.ids_BS, 7))
    with torch.inference_mode():
        torch.testing.assert_close(mix.real(arm(mix)), other.real(arm(other)), rtol=0, atol=0)


def test_a_difference_of_the_arms_shows_in_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(recipe.TIERS, "smoke", SETTINGS)
    right = recipe.run("smoke", Context(work=tmp_path))[0]
    assert right["largest_difference"] <= 1e-4
    config = recipe.architecture(SETTINGS)
    shares = [
        fmean(forward_flops(config, m.packed.lengths) / forward_flops(config, [24] * 4) for m in mixes[1:])
        for mixes in (recipe._mixes(SETTINGS, 0, 24, share, torch.device("cpu")) for share in recipe.SHARES)
    ]
    assert right["flop_share"] == pytest.approx(fmean(shares))
    monkeypatch.setattr(recipe, "openvino_arms", lambda encoder: {"broken": lambda mix: encoder(mix.packed) * np.nan})
    assert np.isnan(recipe.run("smoke", Context(work=tmp_path))[0]["largest_difference"])


def test_plain_attention_takes_padded_places_and_ours_real_tokens(mix):
    arms = attention_arms(recipe.architecture(SETTINGS), mix, torch.float32)
    assert arms["packed"]().shape == (mix.packed.num_tokens, 32)
    assert arms["plain"]().shape == (5, 2, 24, 16)


def test_the_table_keeps_published_ratios_apart():
    spent = {
        "packed": [Spent(1.0, 1.0)] * 3,
        "padded": [Spent(2.0, 9.0), Spent(3.0, 9.0), Spent(4.0, 9.0)],
        "transformers": [Spent(5.0, 5.0)] * 3,
    }
    cells = [Cell(512, share, spent, [100] * 3, [0.5] * 3) for share in (0.4, 0.6)]
    lines = table(cells, "cpu").splitlines()[2:4]
    assert lines == [
        "| 512 | 0.4 | 0.50 | 100 | 3.00 (2.50 to 3.50) | 5.00 (5.00 to 5.00) |  |  |",
        "| 512 | 0.6 | 0.50 | 100 | 3.00 (2.50 to 3.50) | 5.00 (5.00 to 5.00) | 2.28 | 1.31 |",
    ]
    assert "| 512 | 0.6 | 0.50 | 100 | 9.00 (9.00 to 9.00) |" in table(cells, "wall")


def test_the_claim_quotes_the_published_milliseconds():
    pytorch, *_, byte = PUBLISHED[512]
    claim = next(c for c in read_recipe(RECIPES / "bytetransformer").paper.claims if c.id == "padding-free")
    assert f"{pytorch / byte:.2f} times" in claim.paper and f"{pytorch:g} ms, {byte:g} ms" in claim.paper


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_the_paper_tier_wants_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="CUDA GPU"):
        recipe.run("paper", Context(work=tmp_path))
