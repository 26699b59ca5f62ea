"""Binary weights, activations and attention: two values, straight-through gradients, documents apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from terrazzo.checkpoint import load_model, save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert, mosaicbert
from terrazzo.nn.attention import AttentionContext
from terrazzo.nn.binary import BinaryLinear, binary_activation, binary_attention, binary_weight
from terrazzo.nn.positions import alibi_slopes
from terrazzo.packed import Packed
from terrazzo.runtime.graph import GraphEncoder
from terrazzo.tasks.adapters import LoraConfig, add_adapters

TINY = {"width": 24, "num_heads": 3, "mlp_width": 40, "dropout": 0.0, "attention_dropout": 0.0}
LENGTHS = (5, 21, 1, 13)
BATCH = Packed(tokens_T=torch.arange(40) % 19, lengths=LENGTHS)


def test_every_row_has_two_values_and_they_are_the_papers() -> None:
    weight = torch.randn(8, 33) + 0.3
    found = binary_weight(weight)
    for row, values in zip(weight, found, strict=True):
        scale = row.abs().mean()
        assert_close(values, torch.where(row >= row.mean(), scale, -scale))
        assert sorted(set(values.tolist())) == [-values.max().item(), values.max().item()]
    x = torch.tensor([-2.0, -1e-9, 0.0, 0.5])
    assert binary_activation(x).tolist() == [-1, -1, 1, 1]
    assert binary_attention(torch.tensor([-torch.inf, -1, 0, 1e-9, 3])).tolist() == [0, 0, 0, 1, 1]


def test_gradients_pass_strictly_inside() -> None:
    x = torch.tensor([-1.0, -0.99, 0.0, 0.99, 1.0, -torch.inf], requires_grad=True)
    for function in (binary_activation, binary_attention):
        (grad,) = torch.autograd.grad((function(x) * torch.arange(1, 7)).sum(), x)
        assert grad.tolist() == [0, 2, 3, 4, 0, 0]
    weight, upstream = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    (grad,) = torch.autograd.grad((binary_weight(weight) * upstream).sum(), weight)
    inside = upstream * ((weight - weight.mean(1, keepdim=True)).abs() < 1)
    assert_close(grad, inside - inside.mean(1, keepdim=True))
    layer, x_TI = BinaryLinear(9, 4), torch.randn(5, 9, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x_TI).sum(), x_TI)
    assert_close(grad, (x_TI.abs() < 1) * binary_weight(layer.weight).sum(0))


def explicit(qkv_L3NH: Tensor, alibi: bool, window: int | None, causal: bool) -> Tensor:
    length, _, heads, width = qkv_L3NH.shape
    q, k, v = torch.where(qkv_L3NH >= 0, 1.0, -1.0).unbind(1)
    out = torch.zeros(length, heads, width)
    for head, query, key in itertools.product(range(heads), range(length), range(length)):
        hidden = (window is not None and abs(query - key) > window // 2) or (causal and key > query)
        score = float(q[query, head] @ k[key, head]) / width**0.5
        score -= float(alibi_slopes(heads)[head]) * abs(query - key) * alibi
        if score > 0 and not hidden:
            out[query, head] += v[key, head]
    return out.flatten(1)


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize(
    ("positions", "window", "causal"), [("alibi", None, False), ("rope", 6, False), ("alibi", 8, True)]
)
def test_attention_adds_up_signs_of_the_values_that_are_seen(backend: str, positions: str, window, causal) -> None:
    config = bert("tiny", 20, positions=positions, window=window, causal=causal, binary=True, **TINY)
    context = AttentionContext.of(BATCH, config, backend)
    qkv = torch.randn(40, 3, 3, 8)
    layer = Encoder(config, backend).blocks[0].attention
    out = context.attend(binary_activation(qkv), window, (0, 1, 2), 0.0, layer.weigh)
    expected = [explicit(part, positions == "alibi", window, causal) for part in qkv.split(LENGTHS)]
    assert torch.equal(out, torch.cat(expected)), "whole numbers, equal to the last bit"


@pytest.mark.parametrize("family", [bert, mosaicbert, modernbert])
@torch.no_grad()
def test_an_encoder_computes_with_binary_matrices(family) -> None:
    """The plain encoder with binary values in its weights, signs before its products and attention by counting."""
    config = family("tiny", 20, binary=True, binary_embeddings=True, **TINY)
    encoder = Encoder(config).eval()
    seen: list[Tensor] = []

    def keep(module, given, output) -> None:
        seen.append(torch.where(given[0] >= 0, 1.0, -1.0) @ binary_weight(module.weight).T - output)

    for block in encoder.blocks:
        block.attention.qkv.register_forward_hook(keep), block.mlp.down.register_forward_hook(keep)
        for part in (block.attention.qkv, block.mlp.down):
            part.bias = None
    embedded: list[Tensor] = []
    encoder.embeddings.norm.register_forward_pre_hook(lambda _, given: embedded.append(given[0]))
    encoder(BATCH)
    assert len(seen) == 2 * config.depth and all(gap.abs().max() < 1e-4 for gap in seen)
    table = binary_weight(encoder.embeddings.tokens.weight)[BATCH.tokens_T]
    if family is modernbert:
        assert_close(embedded[0], table)


@pytest.mark.parametrize("family", [bert, mosaicbert])
@torch.no_grad()
def test_an_encoder_attends_by_the_signs_of_its_projections(family) -> None:
    encoder = Encoder(family("tiny", 20, depth=1, binary=True, **TINY)).eval()
    attention, kept = encoder.blocks[0].attention, {}
    attention.qkv.register_forward_hook(lambda _, given, out: kept.update(qkv=out.view(-1, 3, 3, 8)))
    attention.out.register_forward_pre_hook(lambda _, given: kept.update(mixed=given[0]))
    encoder(BATCH)
    expected = [explicit(part, family is mosaicbert, None, False) for part in kept["qkv"].split(LENGTHS)]
    assert torch.equal(kept["mixed"], torch.cat(expected))


def test_every_parameter_learns_and_backends_agree() -> None:
    gradients = []
    for backend in ("reference", "grouped"):
        torch.manual_seed(0)
        model = MaskedLM(mosaicbert("tiny", 20, binary=True, binary_embeddings=True, **TINY), backend)
        model.encoder(BATCH).square().sum().backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    assert all(grad is not None and grad.any() for grad in gradients[0])
    for one, two in zip(*gradients, strict=True):
        assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_saved_model_is_binary_again(tmp_path, corpus) -> None:
    encoder = Encoder(bert("tiny", corpus.vocab_size, binary=True, **TINY)).eval()
    loaded = load_model(save_model(tmp_path / "model", encoder, corpus.path / "tokenizer.json")).eval()
    assert loaded.config == encoder.config and torch.equal(loaded(BATCH), encoder(BATCH))
    assert isinstance(loaded.blocks[1].mlp.down, BinaryLinear)


def test_what_a_binary_encoder_cannot_be_is_refused() -> None:
    encoder = Encoder(bert("tiny", 20, binary=True, **TINY))
    with pytest.raises(InputError, match="binary: graphs for other runtimes"):
        GraphEncoder(encoder)
    with pytest.raises(InputError, match="adapter 'lora'.*binary"):
        add_adapters(encoder, LoraConfig(rank=2))
    with pytest.raises(InputError, match="backend 'flex'.*binary"):
        Encoder(encoder.config, "flex")(BATCH)
    with pytest.raises(InputError, match="softmax_gamma.*binary attention has no softmax"):
        bert("tiny", 20, binary=True, softmax_gamma=-0.1)
    with pytest.raises(InputError, match="binary_embeddings: set binary too"):
        bert("tiny", 20, binary_embeddings=True)
