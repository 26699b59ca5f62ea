"""Heads: what turns an encoder's hidden states into the outputs of a task.

Shapes: T packed tokens, B documents, M selected tokens, D width, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed

Pooling = Literal["cls", "mean", "last"]


def pooled(encoder: Encoder, batch: Packed, pooling: Pooling) -> Tensor:
    """One vector a document, `(B, D)`: its first or last token's hidden state, or the mean over all of its tokens.

    For one token a document the last block computes its projections and MLP for those alone.
    """
    if pooling != "mean":
        return encoder(batch, batch.cu_seqlens[:-1] if pooling == "cls" else batch.cu_seqlens[1:] - 1)
    lengths_B = batch.cu_seqlens.diff().long()
    return torch.segment_reduce(encoder(batch).float(), "mean", lengths=lengths_B, unsafe=True)


class ExactLinear(nn.Linear):
    """A linear map in fp32 whatever the precision of the encoder: bf16 outputs would tie values that differ."""

    def forward(self, input: Tensor) -> Tensor:
        """Outputs, fp32."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


class PooledHead(nn.Module):
    """Outputs for a whole document, `(B, C)`: pool, drop, and one linear map.

    Args:
        outputs: those of the linear map, or of each of several (a model of several problems): they lie side by side and
            each is computed alone, so that a further one leaves the bits of the others as they are.
        hidden: a dense layer with tanh before the linear map, as in BERT's pooler (arXiv 1810.04805).

    Raises:
        InputError: the first token of a causal encoder is to speak for the text, of which it sees nothing.
    """

    def __init__(
        self,
        config: EncoderConfig,
        outputs: int | Sequence[int],
        pooling: Pooling = "mean",
        dropout: float = 0.1,
        hidden: bool = False,
    ) -> None:
        super().__init__()
        if pooling == "cls" and config.causal:
            raise InputError("pooling 'cls': the encoder is causal, its first token sees no other; take last or mean")
        self.pooling: Pooling = pooling
        self.dense = ExactLinear(config.width, config.width) if hidden else None
        self.dropout = nn.Dropout(dropout)
        sizes = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        self.out = nn.ModuleList(ExactLinear(config.width, size) for size in sizes)
        draw(self, config.init_std)

    def forward(self, encoder: Encoder, batch: Packed) -> Tensor:
        """Outputs `(B, C)`."""
        x_BD = self.dropout(pooled(encoder, batch, self.pooling))
        if self.dense is not None:
            x_BD = self.dropout(torch.tanh(self.dense(x_BD)))
        parts = [out(x_BD) for out in self.out]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class TokenHead(nn.Module):
    """Outputs for the tokens at `batch.masked_M`, `(M, C)`, or for every token where the batch names none."""

    def __init__(self, config: EncoderConfig, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = ExactLinear(config.width, outputs)
        draw(self, config.init_std)

    def forward(self, encoder: Encoder, batch: Packed) -> Tensor:
        """Outputs `(M, C)`."""
        logits_MC: Tensor = self.out(self.dropout(encoder(batch, batch.masked_M)))
        return logits_MC


class SpanHead(nn.Module):
    """Scores of every token to be the first and the last of a span, `(T, 2)`."""

    def __init__(self, config: EncoderConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = ExactLinear(config.width, 2)
        draw(self, config.init_std)

    def forward(self, encoder: Encoder, batch: Packed) -> Tensor:
        """Scores `(T, 2)`."""
        scores_T2: Tensor = self.out(self.dropout(encoder(batch)))
        return scores_T2


@torch.no_grad()
def draw(module: nn.Module, std: float) -> None:
    """Fresh weights of every linear map from N(0, std), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
