"""One layer: attention and MLP, each with a residual and a norm before or after.

Shapes: T packed tokens, D width, M selected tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrazzo.nn.attention import Attention, AttentionContext
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.dropout import Dropout
from terrazzo.nn.mlp import MLP
from terrazzo.nn.norms import build_norm


class Block(nn.Module):
    """A transformer layer; with `select_M` all that follows attention runs on those tokens alone."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config, layer)
        skip_norm = config.skip_first_norm and layer == 0
        self.attention_norm = nn.Identity() if skip_norm else build_norm(config)
        self.mlp_norm = build_norm(config)
        self.dropout = Dropout(config.dropout)
        self.pre_norm = config.norm_placement == "pre"

    def forward(self, x_TD: Tensor, context: AttentionContext, select_M: Tensor | None = None) -> Tensor:
        """`(T, D)`, or `(M, D)` with a selection."""
        residual_TD = x_TD if select_M is None else x_TD.index_select(0, select_M)
        if self.pre_norm:
            x = residual_TD + self.dropout(self.attention(self.attention_norm(x_TD), context, select_M))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(residual_TD + self.dropout(self.attention(x_TD, context, select_M)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))
