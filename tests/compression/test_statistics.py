"""The calibration pass against the inputs themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from terrazzo.compression import statistics
from terrazzo.compression.sites import matrices
from terrazzo.compression.statistics import Moments, Wanted, collect, output_projections
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(bert("tiny", 100, width=16, num_heads=2, mlp_width=24, depth=2, dropout=0.5))


def batches(*lengths: tuple[int, ...]) -> list[Packed]:
    draw = torch.Generator().manual_seed(0)
    return [Packed(tokens_T=torch.randint(0, 100, (sum(some),), generator=draw), lengths=some) for some in lengths]


def test_sums_are_those_of_the_inputs_without_dropout() -> None:
    model, calibration = encoder(), batches((20, 30), (5,), (40,))
    model.embeddings.eval()
    modes = [module.training for module in model.modules()]
    wanted = Wanted(frozenset(matrices(model)), frozenset(["blocks.1.mlp.up.weight"])) | Wanted()
    found = collect(model, calibration, wanted)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())

    model.eval()
    for name in matrices(model):
        inputs: list[Tensor] = []
        with model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, given, inputs=inputs: inputs.append(given[0].detach())
        ):
            for batch in calibration:
                model(batch)
        inputs_TF, moments = torch.cat(inputs).double(), found.grams[name]
        assert moments.tokens == found.tokens == 95 and moments.gram_FF.dtype == torch.float64
        assert_close(moments.gram_FF, inputs_TF.T @ inputs_TF, rtol=1e-5, atol=1e-5)
        assert_close(moments.mean_F, inputs_TF.mean(0), rtol=1e-5, atol=1e-6)
        assert_close(moments.centred_FF, inputs_TF.T.cov(correction=0) * 95, rtol=1e-4, atol=1e-5)
        if name in found.ranges:
            extent = found.ranges[name]
            assert_close(extent.low_F.double(), inputs_TF.amin(0))
            assert_close(extent.high_F.double(), inputs_TF.amax(0))
    assert list(found.ranges) == ["blocks.1.mlp.up.weight"]


def test_strips_of_columns_join_to_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_STRIP", 5)
    inputs_TF = torch.randn(30, 17, dtype=torch.float64)
    assert_close(Moments.of(inputs_TF).gram_FF, inputs_TF.T @ inputs_TF)


def test_many_batches_lose_nothing_to_rounding() -> None:
    model = encoder()
    (batch,) = batches((50,))
    once = collect(model, [batch], output_projections(model.config)).grams
    often = collect(model, [batch] * 100, output_projections(model.config)).grams
    for name, moments in once.items():
        assert_close(often[name].gram_FF, 100 * moments.gram_FF, rtol=1e-12, atol=0)


def test_a_selection_counts_its_tokens_in_the_last_block_alone() -> None:
    model, calibration = encoder(), batches((20, 30), (5,))
    found = collect(model, calibration, output_projections(model.config), lambda batch: batch.cu_seqlens[:-1].long())
    assert {name: moments.tokens for name, moments in found.grams.items()} == {
        "blocks.0.attention.out.weight": 55,
        "blocks.0.mlp.down.weight": 55,
        "blocks.1.attention.out.weight": 3,
        "blocks.1.mlp.down.weight": 3,
    }


def test_what_cannot_be_collected_is_refused() -> None:
    model = encoder()
    with pytest.raises(InputError, match=r"did you mean 'blocks\.1\.mlp\.up\.weight'"):
        collect(model, [], Wanted(grams=frozenset(["blocks.1.mlp.ups.weight"])))
    with pytest.raises(InputError, match="no text at all"):
        collect(model, [], output_projections(model.config))
    with torch.no_grad():
        model.blocks[0].mlp.up.bias[2] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        collect(model, batches((5,)), output_projections(model.config))
