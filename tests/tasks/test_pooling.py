"""One vector a text: each pooling against the hidden states, and what a causal encoder cannot do."""

import pytest
import torch
from torch.testing import assert_close

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.packed import Packed
from terrazzo.tasks.heads import PooledHead, pooled

CONFIG = mosaicbert("tiny", 50, width=32, num_heads=2, mlp_width=48, dropout=0.0)


@pytest.mark.parametrize("causal", [True, False])
def test_pooling_picks_what_it_names(causal: bool) -> None:
    encoder = Encoder(CONFIG.replace(causal=causal))
    batch = Packed(tokens_T=torch.randint(50, (12,)), lengths=(5, 1, 6))
    hidden_TD = encoder(batch)
    assert_close(pooled(encoder, batch, "cls"), hidden_TD[[0, 5, 6]])
    assert_close(pooled(encoder, batch, "last"), hidden_TD[[4, 5, 11]])
    assert_close(pooled(encoder, batch, "mean"), torch.stack([part.mean(0) for part in hidden_TD.split((5, 1, 6))]))


def test_the_first_token_of_a_causal_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="pooling 'cls': the encoder is causal.*take last or mean"):
        PooledHead(CONFIG.replace(causal=True), 2, "cls")
    assert PooledHead(CONFIG.replace(causal=True), 2, "last").pooling == "last"
