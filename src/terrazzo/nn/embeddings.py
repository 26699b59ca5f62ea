"""Token, segment and learned position embeddings.

Shapes: T packed tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrazzo.errors import InputError
from terrazzo.nn.binary import binary_weight
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.dropout import Dropout
from terrazzo.nn.norms import build_norm
from terrazzo.packed import Packed


class Embeddings(nn.Module):
    """Sum of the embeddings that the config has, then norm and dropout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.padded_vocab_size, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_len + config.position_offset, config.width) if learned else None
        self.token_types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.binary = config.binary_embeddings
        self.position_offset, self.max_len = config.position_offset, config.max_len

    def forward(self, batch: Packed) -> Tensor:
        """Embed a batch as `(T, D)`.

        Raises:
            InputError: a document longer than a learned position table.
        """
        x_TD = self.tokens(batch.tokens_T)
        if self.binary:
            x_TD = binary_weight(x_TD)
        if self.token_types is not None:
            types_T = batch.token_types_T if self.token_types.num_embeddings > 1 else None
            x_TD = x_TD + (self.token_types.weight[0] if types_T is None else self.token_types(types_T))
        if self.positions is not None:
            if batch.max_len > self.max_len:
                raise InputError(
                    f"a document has {batch.max_len} tokens, the model has {self.max_len} learned positions: "
                    "truncate or split it, or use a model with ALiBi or rotary positions"
                )
            x_TD = x_TD + self.positions(batch.positions_T + self.position_offset)
        return self.dropout(self.norm(x_TD))
