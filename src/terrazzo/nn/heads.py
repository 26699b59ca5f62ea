"""The masked-language-model head and the model that pretraining trains.

Shapes: T packed tokens, D width, M masked positions, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.nn.activations import ACTIVATIONS
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.cross_entropy import linear_cross_entropy
from terrazzo.nn.encoder import Encoder
from terrazzo.nn.initialise import initialise
from terrazzo.nn.norms import build_norm
from terrazzo.packed import Packed


class MaskedLMHead(nn.Module):
    """Dense, activation, norm; the decoder is the token embedding, with a bias of its own."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=config.head_dense_bias)
        self.norm = build_norm(config)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size)) if config.head_bias else None
        self.activation = ACTIVATIONS[config.head_activation]

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_MD)))


class MaskedLM(nn.Module):
    """An encoder with the tied masked-language-model head."""

    def __init__(self, config: EncoderConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.head = MaskedLMHead(config)
        initialise(self.head, config)

    def forward(self, batch: Packed) -> Tensor:
        """Logits `(M, V)` at the masked positions, or `(T, V)` at every token where the batch marks none."""
        return self.logits(self.encoder(batch, batch.masked_M))

    def logits(self, x_MD: Tensor) -> Tensor:
        """Logits `(M, V)` from the encoder's hidden states."""
        hidden = self.head(x_MD)
        vocab_size = self.config.vocab_size
        bias = None if self.head.bias is None else self.head.bias[:vocab_size]
        return F.linear(hidden, self.encoder.embeddings.tokens.weight[:vocab_size], bias)

    def masked_loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the masked tokens (fp32 scalar) and how many of them are guessed right (int64)."""
        assert batch.masked_M is not None and batch.labels_M is not None, "the batch has no masked positions"
        hidden_MD = self.head(self.encoder(batch, batch.masked_M))
        weight = self.encoder.embeddings.tokens.weight
        return linear_cross_entropy(hidden_MD, weight, self.head.bias, batch.labels_M, self.config.vocab_size)
