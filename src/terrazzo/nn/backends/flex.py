"""Attention on GPU: FlexAttention over the packed tokens, documents as blocks of a sparse mask, no dense bias.

The block mask is built on the host from the document lengths, without evaluating the mask and without a host sync.

Shapes: T packed tokens, N heads, H head width, Q query blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from terrazzo.packed import Packed

BLOCK = 128


@dataclass(frozen=True)
class FlexPlan:
    """The block mask and the score change of one batch and one window."""

    mask: BlockMask
    score: Callable[..., Tensor] | None


class Flex:
    """FlexAttention, compiled on GPU; on CPU it runs uncompiled and forward only, which the tests use."""

    def plan(self, batch: Packed, slopes_N: Tensor | None, window: int | None, causal: bool = False) -> FlexPlan:
        """Find the key blocks of every query block from the host lengths."""
        first, last = key_blocks(batch.lengths, window, causal)
        counts = torch.from_numpy((last - first + 1).astype(np.int32))
        columns = np.minimum(first[:, None] + np.arange(int((last - first).max()) + 1), last[:, None])
        indices = torch.zeros(len(first), len(first), dtype=torch.int32)
        indices[:, : columns.shape[1]] = torch.from_numpy(columns.astype(np.int32))
        mask = BlockMask.from_kv_blocks(
            counts.to(batch.device, non_blocking=True)[None, None],
            indices.to(batch.device, non_blocking=True)[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=_visible(batch.document_T, window, causal),
            seq_lengths=(batch.num_tokens, batch.num_tokens),
        )
        return FlexPlan(mask, None if slopes_N is None else _distance_penalty(slopes_N.to(batch.device)))

    def attend(self, qkv_T3NH: Tensor, plan: FlexPlan, dropout: float) -> Tensor:
        """Attention output `(T, N * H)`.

        Raises:
            ValueError: attention dropout, which FlexAttention does not have.
        """
        if dropout > 0:
            raise ValueError("FlexAttention has no dropout: set attention_dropout=0 or use the reference backend")
        q, k, v = qkv_T3NH.permute(1, 2, 0, 3)[:, None]
        run: Any = _compiled() if qkv_T3NH.is_cuda else flex_attention
        out: Tensor = run(q, k, v, score_mod=plan.score, block_mask=plan.mask)
        return out[0].transpose(0, 1).flatten(1)


def key_blocks(lengths: tuple[int, ...], window: int | None, causal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """First and last key block that each query block needs; documents, window and direction considered."""
    sizes = np.asarray(lengths)
    ends = np.repeat(np.cumsum(sizes), sizes)
    starts = ends - np.repeat(sizes, sizes)
    heads = np.arange(0, len(ends), BLOCK)
    tails = np.minimum(heads + BLOCK, len(ends)) - 1
    low, high = starts[heads], ends[tails] - 1
    if window is not None:
        low, high = np.maximum(low, heads - window // 2), np.minimum(high, tails + window // 2)
    if causal:
        high = tails
    return low // BLOCK, high // BLOCK


def _visible(document_T: Tensor, window: int | None, causal: bool) -> Callable[..., Tensor]:
    def allowed(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = document_T[query] == document_T[key]
        if window is not None:
            seen = seen & ((query - key).abs() <= window // 2)
        return seen & (key <= query) if causal else seen

    return allowed


def _distance_penalty(slopes_N: Tensor) -> Callable[..., Tensor]:
    def penalised(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes_N[head] * (query - key).abs()

    return penalised


@cache
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled
