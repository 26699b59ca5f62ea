"""Clipped softmax: the softmax at its neutral values, exact zeros and gradients, each backend right or refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from terrazzo.checkpoint import load_model, save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert, modernbert, mosaicbert
from terrazzo.nn.attention import Attention, AttentionContext
from terrazzo.nn.backends import default_backend
from terrazzo.nn.positions import alibi_slopes
from terrazzo.nn.softmax import clipped_softmax, softmax, weighing
from terrazzo.packed import Packed

LENGTHS = (5, 40, 1, 17)
GAMMA, ZETA = -0.06, 1.1
TINY = {"width": 16, "num_heads": 2, "mlp_width": 24}


def packed(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    return Packed(tokens_T=torch.randint(0, 60, (sum(lengths),), generator=draw), lengths=lengths)


def test_the_neutral_one_is_the_softmax_bit_for_bit() -> None:
    scores = torch.randn(64, 50) * 5
    scores[:, 40:] = -math.inf
    assert torch.equal(clipped_softmax(scores, 0.0, 1.0), torch.softmax(scores, -1))
    assert weighing(bert("tiny", 60)) is None


def test_low_and_hidden_entries_are_exactly_zero_and_a_sure_one_is_exactly_one() -> None:
    scores = torch.tensor([[3.0, 0.0, -2.0, -math.inf], [40.0, 0.0, 0.0, -math.inf]])
    weights = clipped_softmax(scores, -0.025, 1.03)
    assert_close(weights[0, 0], 1.055 * scores[0].softmax(0)[0] - 0.025)
    assert (weights[0, 2:] == 0).all() and weights[1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert (scores[0, :3].softmax(0) > 0).all()


def test_gradients_are_exact_and_zero_where_clipped() -> None:
    scores = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: clipped_softmax(x, -0.1, 1.05), scores)
    flat = torch.zeros(8, 8, requires_grad=True)
    clipped_softmax(flat, -0.2).square().sum().backward()
    assert not flat.grad.any(), "all weights are clipped, nothing drives the scores apart"


def explicit(qkv_L3NH: Tensor, alibi: bool, window: int | None, causal: bool) -> Tensor:
    """One document, score by score."""
    length, _, heads, width = qkv_L3NH.shape
    slopes, out = alibi_slopes(heads), torch.zeros(length, heads, width)
    for head, query in itertools.product(range(heads), range(length)):
        seen = [k for k in range(length) if window is None or abs(k - query) <= window // 2]
        seen = [k for k in seen if k <= query or not causal]
        scores = [qkv_L3NH[query, 0, head] @ qkv_L3NH[k, 1, head] / math.sqrt(width) for k in seen]
        scores = [s - slopes[head] * abs(k - query) * alibi for s, k in zip(scores, seen, strict=True)]
        weights = ((ZETA - GAMMA) * torch.stack(scores).softmax(0) + GAMMA).clip(0, 1)
        out[query, head] = weights @ qkv_L3NH[seen, 2, head]
    return out.flatten(1)


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize(("positions", "window"), [("alibi", None), ("alibi", 6), ("rope", 6), ("learned", None)])
@pytest.mark.parametrize("causal", [True, False])
def test_each_document_is_attended_alone(backend: str, positions: str, window: int | None, causal: bool) -> None:
    config = bert("tiny", 60, positions=positions, window=window, causal=causal, **TINY)
    config = config.replace(softmax_gamma=GAMMA, softmax_zeta=ZETA)
    lengths, context = (5, 9, 1), AttentionContext.of(packed((5, 9, 1)), config, backend)
    qkv = torch.randn(15, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    out = context.attend(qkv, window, (0, 1), 0.0, weighing(config))
    expected = [explicit(part, positions == "alibi", window, causal) for part in qkv.split(lengths)]
    assert_close(out, torch.cat(expected))


@pytest.mark.parametrize("family", [bert, mosaicbert, modernbert])
def test_backends_agree_forward_and_backward_in_a_whole_encoder(family) -> None:
    config = family("tiny", 60, softmax_gamma=GAMMA, dropout=0.0, attention_dropout=0.0, **TINY)
    grads = []
    for backend in ("reference", "grouped", None):
        torch.manual_seed(0)
        encoder = Encoder(config, backend)
        encoder(packed()).square().sum().backward()
        grads.append([parameter.grad for parameter in encoder.parameters()])
    for one, two, three in zip(*grads, strict=True):
        assert_close(two, one, rtol=1e-4, atol=1e-4)
        assert_close(three, two, rtol=0, atol=0)


def test_a_fused_backend_is_refused_or_replaced() -> None:
    config = bert("tiny", 60, softmax_gamma=-0.03, dropout=0.0, attention_dropout=0.0, **TINY)
    with pytest.raises(InputError, match="backend 'flex' fuses the softmax.*softmax_gamma.*'reference'"):
        Encoder(config, "flex")(packed())
    cuda = torch.device("cuda")
    assert (default_backend(cuda, explicit=True), default_backend(cuda)) == ("reference", "flex")


def test_weights_fall_out_after_clipping() -> None:
    config = bert("tiny", 60, softmax_gamma=-0.03, dropout=0.0, attention_dropout=0.4, **TINY)
    layer, batch, x_TD = Attention(config, 0), packed(), torch.randn(63, 16)
    context = AttentionContext.of(batch, config, None)
    torch.manual_seed(0)
    mean = torch.stack([layer.train()(x_TD, context) for _ in range(150)]).mean(0)
    assert_close(mean, layer.eval()(x_TD, context), rtol=0.15, atol=0.15)
    assert not torch.equal(layer.train()(x_TD, context), layer(x_TD, context))


def test_plain_models_take_the_fused_path(monkeypatch) -> None:
    monkeypatch.setattr("terrazzo.nn.backends.grouped.attend_with_dropout", None)
    Encoder(bert("tiny", 60, **TINY)).eval()(packed())
    with pytest.raises(TypeError):
        Encoder(bert("tiny", 60, softmax_gamma=-0.1, **TINY)).eval()(packed())


@pytest.mark.parametrize("fields", [{"softmax_gamma": 0.1}, {"softmax_gamma": -1.0}, {"softmax_zeta": 0.9}])
def test_values_that_let_tokens_see_everything_are_refused(fields) -> None:
    with pytest.raises(InputError, match=next(iter(fields))):
        bert("tiny", 60, **fields)


def test_a_saved_model_clips_again(tmp_path: Path, corpus) -> None:
    config = bert("tiny", corpus.vocab_size, softmax_gamma=GAMMA, attention_gate="mlp", **TINY)
    encoder = Encoder(config).eval()
    loaded = load_model(save_model(tmp_path / "model", encoder, corpus.path / "tokenizer.json")).eval()
    assert loaded.config == config and torch.equal(loaded(packed()), encoder(packed()))
    assert not torch.equal(loaded(packed()), _plain(encoder)(packed()))


def _plain(encoder: Encoder) -> Encoder:
    plain = Encoder(encoder.config.replace(softmax_gamma=0.0)).eval()
    plain.load_state_dict(encoder.state_dict())
    assert plain.blocks[0].attention.weigh is None and softmax(torch.zeros(2)).tolist() == [0.5, 0.5]
    return plain
