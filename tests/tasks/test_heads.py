"""Heads: what they read, their roles, and that packing changes nothing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from terrazzo.nn import Encoder, mosaicbert
from terrazzo.optim.roles import roles
from terrazzo.packed import Packed
from terrazzo.tasks.heads import PooledHead, SpanHead, TokenHead, pooled

CONFIG = mosaicbert("tiny", 50, width=32, num_heads=2, mlp_width=48, init_std=0.5)
LENGTHS = (5, 1, 6)


@pytest.fixture
def batch():
    return Packed(tokens_T=torch.randint(50, (12,)), lengths=LENGTHS)


def test_mean_pooling_has_the_gradients_of_a_loop(batch):
    encoder, weights_BD = Encoder(CONFIG).eval(), torch.randn(3, 32)
    loop_BD = torch.stack([part.mean(0) for part in encoder(batch).split(LENGTHS)])
    grads = [
        torch.autograd.grad((x_BD * weights_BD).sum(), list(encoder.parameters()), allow_unused=True)
        for x_BD in (pooled(encoder, batch, "mean"), loop_BD)
    ]
    for ours, looped in zip(*grads, strict=True):
        assert (ours is None) == (looped is None)
        if ours is not None:
            assert_close(ours, looped, rtol=1e-4, atol=1e-5)


def test_first_tokens_alone_pass_through_the_last_block(batch):
    encoder, rows = Encoder(CONFIG).eval(), []
    encoder.blocks[-1].mlp.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    pooled(encoder, batch, "cls")
    assert rows == [3]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_document_is_answered_alike_alone_and_packed(batch, pooling, hidden):
    encoder = Encoder(CONFIG).eval()
    head = PooledHead(CONFIG, [2, 3], pooling, hidden=hidden).eval()
    alone = [
        head(encoder, Packed(tokens_T=t, lengths=(n,)))
        for t, n in zip(batch.tokens_T.split(LENGTHS), LENGTHS, strict=True)
    ]
    assert_close(head(encoder, batch), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_token_and_span_outputs(batch):
    encoder, masked_M = Encoder(CONFIG).eval(), torch.tensor([1, 4, 5, 11])
    tokens, spans = TokenHead(CONFIG, 7).eval(), SpanHead(CONFIG).eval()
    every = tokens(encoder, batch)
    assert every.shape == (12, 7)
    assert_close(tokens(encoder, batch.replace(masked_M=masked_M)), every[masked_M], rtol=1e-4, atol=1e-5)
    assert spans(encoder, batch).shape == (12, 2)


def test_weights_are_drawn_as_the_config_says_and_are_the_optimizers_head():
    model = nn.ModuleDict({"encoder": Encoder(CONFIG), "head": PooledHead(CONFIG.replace(width=256), 100, hidden=True)})
    assert {role for name, role in roles(model).items() if name.startswith("head.")} == {"head", "bias"}
    for linear in (model["head"].dense, *model["head"].out):
        assert linear.weight.std().item() == pytest.approx(0.5, rel=0.02) and not linear.bias.any()


def test_dropout_is_off_only_outside_training(batch):
    encoder, head = Encoder(CONFIG).eval(), PooledHead(CONFIG, 4, dropout=0.5)
    assert not torch.equal(head(encoder, batch), head(encoder, batch))
    assert torch.equal(head.eval()(encoder, batch), head(encoder, batch))


def test_segments_do_not_matter_to_a_model_with_one(batch):
    encoder = Encoder(CONFIG.replace(token_types=1)).eval()
    assert_close(encoder(batch.replace(token_types_T=torch.ones(12, dtype=torch.int64))), encoder(batch))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_outputs_are_fp32_whatever_the_precision_of_the_encoder(batch, pooling):
    encoder = Encoder(CONFIG).eval()
    heads = [PooledHead(CONFIG, 2, pooling, hidden=True).eval(), TokenHead(CONFIG, 2).eval(), SpanHead(CONFIG).eval()]
    exact = [head(encoder, batch) for head in heads]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [head(encoder, batch) for head in heads]
    low = [head.bfloat16()(encoder.bfloat16(), batch) for head in heads]
    for outputs in (mixed, low):
        for ours, wanted in zip(outputs, exact, strict=True):
            assert_close(ours, wanted, rtol=0.2, atol=0.5)
            assert not torch.equal(ours, ours.bfloat16().float())
