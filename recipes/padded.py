"""The usual padded execution of our own model, to measure against: every document takes `size` slots.

Padding tokens pass through embeddings, attention, MLP and norms like any other; only their keys are masked, as usual.

Shapes: B documents, S padded length, T = B * S slots, N heads, H head width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.nn.backends import BACKENDS
from terrazzo.packed import Packed

NAME = "padded"


class Padded:
    """One attention call over all documents at one length; no gather, no scatter."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def plan(self, batch: Packed, slopes_N: Tensor | None, window: int | None, causal: bool = False) -> Tensor:
        """Bias `(B, 1 or N, S, S)`: distance penalties and the mask of padded keys."""
        assert window is None and not causal, "padded execution takes no window and both directions"
        assert len(set(batch.lengths)) == 1, "padded execution takes one length"
        size = batch.lengths[0]
        is_pad_BS = batch.tokens_T.view(-1, size) == self.pad
        bias = is_pad_BS[:, None, None, :].float() * (torch.finfo(torch.float32).min / 4)
        bias = bias.expand(-1, -1, size, -1)
        if slopes_N is None:
            return bias.contiguous()
        positions = torch.arange(size)
        return bias - slopes_N[:, None, None] * (positions[:, None] - positions[None]).abs()

    def attend(self, qkv_T3NH: Tensor, plan: Tensor, dropout: float) -> Tensor:
        """Attention output `(T, N * H)`."""
        _, _, num_heads, head_width = qkv_T3NH.shape
        qkv = qkv_T3NH.view(*plan.shape[::3], 3, num_heads, head_width).permute(2, 0, 3, 1, 4)
        bias = plan.expand(-1, num_heads, -1, -1)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias, dropout_p=dropout)
        return mixed.transpose(1, 2).reshape(-1, num_heads * head_width)


def register(pad: int) -> str:
    """Make the padded execution known as a backend for a tokenizer's padding token; returns its name."""
    BACKENDS[NAME] = Padded(pad)
    return NAME


def pad_batch(batch: Packed, size: int, pad: int) -> Packed:
    """The batch with every document filled up to `size` slots; masked positions move along."""
    lengths = np.asarray(batch.lengths)
    slot_T = torch.from_numpy(np.repeat(np.arange(len(lengths)) * size - (np.cumsum(lengths) - lengths), lengths))
    slot_T += torch.arange(batch.num_tokens)
    tokens = batch.tokens_T.new_full((len(lengths) * size,), pad)
    tokens[slot_T] = batch.tokens_T
    masked_M = None if batch.masked_M is None else slot_T[batch.masked_M]
    return batch.replace(tokens_T=tokens, lengths=(size,) * len(lengths), masked_M=masked_M)
