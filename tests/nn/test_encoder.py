"""The encoder as a whole: parity of its shortcuts, loss and gradients, FLOPs, initialisation, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM, bert, forward_flops, modernbert, mosaicbert, parameter_count
from terrazzo.nn import cross_entropy as cross_entropy_module
from terrazzo.nn.cross_entropy import linear_cross_entropy
from terrazzo.packed import Packed

LENGTHS = (5, 40, 17, 18, 16, 1, 9)
FAMILIES = [
    mosaicbert("tiny", 100, dropout=0.0),
    bert("tiny", 100, dropout=0.0, attention_dropout=0.0),
    modernbert("tiny", 100, window=8),
    mosaicbert("tiny", 100, dropout=0.0, norm="rms", activation="silu", norm_placement="pre", final_norm=True),
    mosaicbert("tiny", 100, dropout=0.0, causal=True),
    mosaicbert("tiny", 100, dropout=0.0, softmax_gamma=-0.05, attention_gate="linear"),
]
UNEVEN = bert("tiny", 100, num_heads=4, kept_heads=((0, 3), ()), mlp_widths=(0, 7), dropout=0.0, attention_dropout=0.0)


def masked_batch() -> Packed:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 100, (sum(LENGTHS),), generator=generator)
    masked = torch.tensor([3, 7, 50, 90, 105])
    return Packed(tokens_T=tokens, lengths=LENGTHS, masked_M=masked, labels_M=torch.tensor([1, 2, 3, 4, 5]))


@pytest.mark.parametrize("config", FAMILIES)
def test_masked_loss_and_gradients_equal_the_dense_computation(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    model, batch = MaskedLM(config), masked_batch()
    dense = model.head(model.encoder(batch))[batch.masked_M]
    logits = F.linear(dense, model.encoder.embeddings.tokens.weight[:100], model.head.bias[:100])
    expected = F.cross_entropy(logits, batch.labels_M, reduction="sum")
    expected_grads = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    loss, _ = model.masked_loss(batch)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert_close(loss, expected)
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_changing_one_document_leaves_the_others_bit_identical() -> None:
    model, batch = MaskedLM(FAMILIES[0]).eval(), masked_batch().replace(masked_M=None)
    changed = batch.tokens_T.clone()
    changed[5:45] = 7
    before, after = model(batch), model(batch.replace(tokens_T=changed))
    assert torch.equal(before[45:], after[45:]) and torch.equal(before[:5], after[:5])


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("causal", [True, False])
def test_only_a_bidirectional_encoder_sees_later_tokens(config: EncoderConfig, causal: bool) -> None:
    model, batch = MaskedLM(config.replace(causal=causal)).eval(), masked_batch().replace(masked_M=None)
    changed = batch.tokens_T.clone()
    changed[25] = (changed[25] + 1) % 100  # of the document at 5 to 44
    before, after = model(batch), model(batch.replace(tokens_T=changed))
    moved = (before != after).any(1).nonzero().flatten().tolist()
    assert moved and set(moved) <= set(range(5, 45)) and max(moved) > 25
    assert (min(moved) >= 25) is causal


def test_chunks_and_padded_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(11, 6, requires_grad=True)
    weight, bias = torch.randn(64, 6, requires_grad=True), torch.randn(64, requires_grad=True)
    labels = torch.randint(0, 50, (11,))
    monkeypatch.setitem(cross_entropy_module.CHUNK_BYTES, "cpu", 4 * 50 * 3)
    loss, correct = linear_cross_entropy(hidden, weight, bias, labels, 50)
    logits = F.linear(hidden, weight[:50], bias[:50])
    assert_close(loss, F.cross_entropy(logits, labels, reduction="sum"))
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    wanted = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum") * 3, (hidden, weight, bias))
    for got, want in zip(torch.autograd.grad(loss * 3, (hidden, weight, bias)), wanted, strict=True):
        assert_close(got, want)


def test_loss_of_a_hopeless_label_is_finite() -> None:
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    loss, _ = linear_cross_entropy(hidden, weight, None, torch.tensor([1]), 2)
    assert_close(loss, torch.tensor(2000.0))


@pytest.mark.parametrize("config", FAMILIES)
def test_missing_heads_and_inner_units_are_those_that_would_add_nothing(config: EncoderConfig) -> None:
    config = config.replace(num_heads=4, depth=4)
    kept, widths = ((0, 1, 2, 3), (1, 3), (), (2,)), (8, 0, 5, config.mlp_width)
    torch.manual_seed(0)
    full, small = Encoder(config).eval(), Encoder(config.replace(kept_heads=kept, mlp_widths=widths)).eval()
    state = {name: nn.init.normal_(tensor, std=0.2) for name, tensor in full.state_dict().items()}
    shrunk = dict(state)
    for layer, (heads, width) in enumerate(zip(kept, widths, strict=True)):
        lost_D = torch.tensor([unit // config.head_width not in heads for unit in range(config.width)])
        state[f"blocks.{layer}.attention.out.weight"][:, lost_D] = 0
        state[f"blocks.{layer}.mlp.down.weight"][:, width:] = 0
        for name, side in (("attention.qkv", 3), ("mlp.up", 2 if config.gated else 1)):
            keep_F = ~lost_D if side == 3 else torch.arange(config.mlp_width) < width
            for part in ("weight", "bias"):
                if (tensor := state.get(key := f"blocks.{layer}.{name}.{part}")) is not None:
                    shrunk[key] = tensor.unflatten(0, (side, -1))[:, keep_F].flatten(0, 1)
                if (tensor := state.get(key := f"blocks.{layer}.attention.gate.out.{part}")) is not None:
                    shrunk[key] = tensor[list(heads)]
        for name, keep in (("attention.out", ~lost_D), ("mlp.down", torch.arange(config.mlp_width) < width)):
            shrunk[f"blocks.{layer}.{name}.weight"] = state[f"blocks.{layer}.{name}.weight"][:, keep]
    small.load_state_dict(shrunk)
    batch, select_M = masked_batch(), torch.tensor([0, 50, 105])
    assert_close(small(batch), full(batch), rtol=1e-4, atol=1e-4)
    assert_close(small(batch, select_M), full(batch)[select_M], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [*FAMILIES[:3], UNEVEN, UNEVEN.replace(attention_gate="mlp"), FAMILIES[-1]])
def test_flops_equal_what_pytorch_counts_for_one_length(config: EncoderConfig) -> None:
    model = MaskedLM(config.replace(window=None), backend="reference").eval()
    batch = masked_batch().replace(lengths=(106,))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    assert counter.get_total_flops() == forward_flops(model.config, [106], 5)


@pytest.mark.parametrize("window", [None, 8])
def test_causal_flops_count_the_tokens_that_are_seen(window: int | None) -> None:
    config = mosaicbert("tiny", 100, causal=True, window=window)
    seen = [min(i + 1, 5 if window else i + 1) for length in LENGTHS for i in range(length)]
    blind = config.replace(num_heads=1, window=0, causal=False)  # every token sees itself alone
    difference = forward_flops(config, LENGTHS) - forward_flops(blind, LENGTHS)
    assert difference == pytest.approx(4 * config.width * config.depth * (sum(seen) - sum(LENGTHS)))


@pytest.mark.parametrize("config", [*FAMILIES, UNEVEN])
def test_parameter_count_is_exact(config: EncoderConfig) -> None:
    assert parameter_count(config) == sum(p.numel() for p in MaskedLM(config).parameters())


def test_named_sizes_have_the_papers_parameters() -> None:
    assert parameter_count(mosaicbert("base", 30_522)) == pytest.approx(137e6, rel=0.01)
    assert parameter_count(bert("base", 30_522)) == pytest.approx(110e6, rel=0.01)
    assert parameter_count(modernbert("base", 50_368)) == pytest.approx(149e6, rel=0.01)
    assert parameter_count(mosaicbert("large", 30_522)) == pytest.approx(434e6, rel=0.01)


def test_megatron_initialisation_scales_residual_outputs() -> None:
    torch.manual_seed(0)
    config = modernbert("mini", 1000)
    block = MaskedLM(config).encoder.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02 * 0.88, rel=0.03)  # cut at 2 sigma
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 * 0.88 / math.sqrt(2 * config.depth), rel=0.03)
    assert block.mlp.up.weight.abs().max() <= 0.04


def test_low_precision_norm_computes_in_the_input_type() -> None:
    low, high = (MaskedLM(mosaicbert("tiny", 100, low_precision_norm=flag)).head.norm for flag in (True, False))
    x = torch.randn(64, 128).bfloat16()
    exact = F.layer_norm(x.float(), (128,), eps=1e-12)
    assert low(x).dtype == high(x).dtype == torch.bfloat16
    assert torch.equal(high(x), exact.bfloat16())
    assert_close(low(x).float(), exact, rtol=2e-2, atol=2e-2)


def test_too_long_a_document_for_learned_positions_is_refused() -> None:
    model = MaskedLM(bert("tiny", 100, max_len=8))
    with pytest.raises(InputError, match="9 tokens, the model has 8 learned positions"):
        model(Packed.from_sequences([[1] * 9]))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="width 10 is not a multiple of num_heads 3"):
        EncoderConfig(vocab_size=10, width=10, num_heads=3)
    with pytest.raises(InputError, match="kept_heads has 1 layers, depth is 2"):
        bert("tiny", 10, kept_heads=((0,),))
    with pytest.raises(InputError, match="kept_heads of layer 1: .1, 0.: not some of 0 to 1, ascending"):
        bert("tiny", 10, kept_heads=((0, 1), (1, 0)))
    with pytest.raises(InputError, match="did you mean 'small'"):
        mosaicbert("smal", 10)
