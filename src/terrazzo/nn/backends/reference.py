"""Attention as the equation says it, one document at a time: slow, obvious, the measure of the others.

Shapes: T packed tokens, N heads, H head width, L tokens of one document.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.nn.softmax import Weigh, softmax
from terrazzo.packed import Packed


@dataclass(frozen=True)
class ReferencePlan:
    """What the reference needs to know of a batch."""

    lengths: tuple[int, ...]
    slopes_N: Tensor | None
    window: int | None
    causal: bool = False


class Reference:
    """Softmax attention by explicit score matrices."""

    def plan(self, batch: Packed, slopes_N: Tensor | None, window: int | None, causal: bool = False) -> ReferencePlan:
        """Keep the document lengths."""
        return ReferencePlan(batch.lengths, slopes_N, window, causal)

    def attend(self, qkv_T3NH: Tensor, plan: ReferencePlan, dropout: float) -> Tensor:
        """Attention output `(T, N * H)`."""
        return self.attend_explicitly(qkv_T3NH, plan, dropout, softmax)

    def attend_explicitly(self, qkv_T3NH: Tensor, plan: ReferencePlan, dropout: float, weigh: Weigh) -> Tensor:
        """Attention output `(T, N * H)`, with any function from scores to weights."""
        documents = [self._document(part, plan, dropout, weigh) for part in qkv_T3NH.split(plan.lengths)]
        return torch.cat(documents).flatten(1)

    def _document(self, qkv_L3NH: Tensor, plan: ReferencePlan, dropout: float, weigh: Weigh) -> Tensor:
        q_NLH, k_NLH, v_NLH = qkv_L3NH.permute(1, 2, 0, 3)
        scores_NLL = q_NLH @ k_NLH.mT / math.sqrt(q_NLH.shape[-1])
        positions = torch.arange(q_NLH.shape[1], device=qkv_L3NH.device)
        distance_LL = (positions[:, None] - positions[None]).abs()
        if plan.slopes_N is not None:
            scores_NLL = scores_NLL - plan.slopes_N.to(distance_LL.device)[:, None, None] * distance_LL
        if plan.window is not None:
            scores_NLL = scores_NLL.masked_fill(distance_LL > plan.window // 2, -math.inf)
        if plan.causal:
            scores_NLL = scores_NLL.masked_fill(positions[:, None] < positions[None], -math.inf)
        weights_NLL = weigh(scores_NLL).to(v_NLH.dtype)
        return (torch.dropout(weights_NLL, dropout, train=True) @ v_NLH).transpose(0, 1)
