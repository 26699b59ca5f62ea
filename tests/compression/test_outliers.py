"""Outlier measures against scipy, and eight-bit simulations that find a planted one."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from terrazzo.compression.outliers import inf_norm_B, kurtosis_B, measure_outliers
from terrazzo.compression.w8a8 import W8A8, pseudo_perplexities, round_activation, round_weight, simulate_w8a8
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert
from terrazzo.packed import Packed

TINY = {"width": 32, "num_heads": 4, "mlp_width": 48, "dropout": 0.3}
LENGTHS = (20, 31, 2, 9)
FINE = W8A8(weights="channel", activations="token")


def batches(count: int = 2, seed: int = 0) -> list[Packed]:
    draw = torch.Generator().manual_seed(seed)
    total = sum(LENGTHS)
    masked, labels = torch.tensor([2, 30, 52, 60]), torch.tensor([5, 6, 7, 8])
    tokens = [torch.randint(0, 40, (total,), generator=draw) for _ in range(count)]
    return [Packed(tokens_T=ids, lengths=LENGTHS, masked_M=masked, labels_M=labels) for ids in tokens]


def test_kurtosis_is_scipys_for_each_document() -> None:
    x_TD = torch.randn(62, 8) ** 3 + 5
    for part, tail, norm in zip(x_TD.split(LENGTHS), kurtosis_B(x_TD, LENGTHS), inf_norm_B(x_TD, LENGTHS), strict=True):
        expected = scipy.stats.kurtosis(part.double().numpy(), axis=None, fisher=False, bias=True)
        assert float(tail) == pytest.approx(expected, rel=1e-10)
        assert float(norm) == float(part.abs().max())


@pytest.mark.parametrize("family", [bert, modernbert])
def test_one_pass_measures_every_place_without_dropout(family) -> None:
    torch.manual_seed(0)
    encoder = Encoder(family("tiny", 40, depth=2, **TINY))
    found, places = measure_outliers(encoder, batches()), {}
    assert found.documents == 8 and encoder.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
    encoder.eval()
    for layer, block in enumerate(encoder.blocks):
        places[f"blocks.{layer}.mlp"] = (block.mlp, 1)
        places[f"blocks.{layer}.mlp_norm"] = (block.mlp_norm, 0)
        if layer or family is bert:
            places[f"blocks.{layer}.attention_norm"] = (block.attention_norm, 0)
    assert places.keys() == found.inf_norm.keys() == found.kurtosis.keys()
    for name, (module, after) in places.items():
        seen: list[Tensor] = []
        with module.register_forward_hook(
            lambda _, given, out, seen=seen, after=after: seen.append((*given, out)[after])
        ):
            for batch in batches():
                encoder(batch)
        documents = [part.double() for x_TD in seen for part in x_TD.detach().split(LENGTHS)]
        tails = [scipy.stats.kurtosis(part.numpy(), axis=None, fisher=False) for part in documents]
        assert found.kurtosis[name] == pytest.approx(sum(tails) / 8, rel=1e-6)
        assert found.inf_norm[name] == pytest.approx(sum(float(part.abs().max()) for part in documents) / 8, rel=1e-6)
    assert found.max_inf_norm == max(found.inf_norm.values())
    with pytest.raises(InputError, match="no text at all"):
        measure_outliers(encoder, [])


def test_roundings_are_the_definitions() -> None:
    weight = torch.tensor([[1.0, -0.5], [100.0, 127.0], [0.02, 0.01], [0.0, 0.005]])
    assert_close(round_weight(weight, "tensor"), torch.tensor([[1.0, -0.0], [100.0, 127.0], [0, 0], [0, 0]]))
    by_row = round_weight(weight, "channel")
    assert_close(by_row, weight, rtol=0.02, atol=0)
    assert_close(round_weight(weight, "tensor", stacked=2)[2:], weight[2:], rtol=0.02, atol=1e-4)
    x = torch.tensor([-3.0, -1.0, 0.0, 0.4, 1.55, 9.0])
    rounded = round_activation(x, torch.tensor(-1.0), torch.tensor(1.55))
    assert_close(rounded, torch.tensor([-1.0, -1.0, 0.0, 0.4, 1.55, 1.55]))
    assert rounded[2] == 0 and round_activation(x[2:4], torch.tensor(0.3), torch.tensor(0.4))[0] == 0


def test_fixed_ranges_run_over_calibration_alone() -> None:
    encoder, (first, second) = Encoder(bert("tiny", 40, depth=1, **TINY)).eval(), batches()
    rounded = simulate_w8a8(encoder, [first, second], W8A8(momentum=0.75))
    lows: list[float] = []
    with encoder.blocks[0].mlp_norm.register_forward_pre_hook(lambda _, x: lows.append(x[0].min().item())):
        for batch in (first, second):
            with torch.no_grad():
                encoder(batch)
    (point,) = (hook.__closure__[0].cell_contents for hook in rounded.blocks[0].mlp_norm._forward_pre_hooks.values())
    assert float(point.range_2K1[0]) == pytest.approx(0.75 * lows[0] + 0.25 * lows[1], rel=1e-5)
    assert torch.equal(rounded(second), rounded(second)), "ranges stay"
    assert len(rounded.blocks[0].mlp.down.weight.unique()) <= 255
    for name, tensor in encoder.state_dict().items():
        assert ".weight" in name or torch.equal(tensor, rounded.state_dict()[name])
    with pytest.raises(InputError, match="fixed ranges need texts"):
        simulate_w8a8(encoder, [])


def planted() -> Encoder:
    """Token 7 carries one channel a hundred times as large as the largest value otherwise."""
    torch.manual_seed(0)
    fields = {"norm_placement": "pre", "embedding_norm": False, "init_std": 0.3, **TINY}
    encoder = Encoder(bert("tiny", 40, depth=2, **fields)).eval()
    with torch.no_grad():
        encoder.embeddings.tokens.weight[7, 3] = 100 * max(encoder.embeddings(b).abs().max() for b in batches())
    return encoder


@torch.inference_mode()
def test_a_planted_outlier_breaks_coarse_scales_alone_and_is_seen() -> None:
    encoder, ordinary = planted(), Encoder(planted().config).eval()
    calibration, evaluated = batches(4, seed=1), batches(2)
    kept = [batch.tokens_T != 7 for batch in evaluated]
    found = {}
    for name, model in (("planted", encoder), ("ordinary", ordinary)):
        for options in (W8A8(), FINE):
            rounded = simulate_w8a8(model, calibration, options)
            pairs = [(model(b)[k], rounded(b)[k]) for b, k in zip(evaluated, kept, strict=True)]
            found[name, options.weights] = min(float(F.cosine_similarity(a, b).mean()) for a, b in pairs)
    assert found["planted", "tensor"] < 0.9 and found["planted", "channel"] > 0.99, found
    assert found["ordinary", "tensor"] > 0.99 and found["ordinary", "channel"] > 0.99, found
    seen, unseen = measure_outliers(encoder, evaluated), measure_outliers(ordinary, evaluated)
    assert seen.mean_kurtosis > 10 * unseen.mean_kurtosis and seen.max_inf_norm > 3 * unseen.max_inf_norm


def test_the_gap_is_between_perplexities_and_calibration_is_never_evaluated() -> None:
    torch.manual_seed(0)
    model = MaskedLM(bert("tiny", 40, depth=1, **TINY))
    calibration, evaluated = batches(3, seed=1), batches(2)
    found = pseudo_perplexities(model, calibration, evaluated, {"coarse": W8A8(), "fine": FINE})
    assert model.training and found.keys() == {"fp32", "coarse", "fine"}
    model.eval()
    total = sum(F.cross_entropy(model(b), b.labels_M, reduction="sum") for b in evaluated)
    assert found["fp32"] == pytest.approx((total / 8).exp().item(), rel=1e-5)
    assert found["fine"] == pytest.approx(found["fp32"], rel=0.05) and found["fine"] != found["fp32"]
    with pytest.raises(InputError, match="a batch is evaluated too"):
        pseudo_perplexities(model, [*calibration, batches(1)[0]], evaluated, {"coarse": W8A8()})
