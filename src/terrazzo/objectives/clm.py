"""Causal language modelling: predict every token from those before it.

Shapes: T packed tokens, B documents, M = T - B predictions.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from terrazzo.config import config
from terrazzo.data.corpus import SpecialTokens
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.objectives.objective import Loss
from terrazzo.packed import Packed


def next_tokens(tokens_T: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a token follows in the same document, and which one: int64 positions `(M,)`, ascending, and ids `(M,)`."""
    follows_T = np.ones(len(tokens_T), dtype=bool)
    follows_T[np.cumsum(lengths_B) - 1] = False
    positions_M = np.flatnonzero(follows_T)
    return positions_M, tokens_T[positions_M + 1]


@config
class CLMConfig:
    """Causal language modelling: next-token prediction, special tokens at the ends included. Needs a causal encoder."""

    kind: Literal["clm"] = "clm"

    def build(self, special: SpecialTokens, vocab_size: int, word_starts: np.ndarray | None = None) -> CLM:
        """The objective; the tokenizer's facts do not matter to it."""
        return CLM()


def check_direction(objective: Any, encoder: EncoderConfig) -> None:
    """Refuse to learn the next token with an encoder that sees it.

    Raises:
        InputError: naming the objective's field and the model's.
    """
    if isinstance(objective, (CLM, CLMConfig)) and not encoder.causal:
        raise InputError(
            "objective.kind is 'clm', which predicts the next token, and model.fields.causal is false, so that the "
            "encoder sees it: set model.fields.causal=true, or objective.kind=mlm"
        )


class CausalModel(Protocol):
    """What the objective needs of a model."""

    config: EncoderConfig

    def masked_loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over `labels_M` (fp32 scalar), and how many are predicted right (int64 scalar)."""
        ...


class CLM:
    """Causal language modelling; nothing is random and nothing scheduled."""

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        """Mark every token but the last of each document, with the next one as its label; the tokens stay."""
        positions_M, labels_M = next_tokens(batch.tokens_T.numpy(), np.array(batch.lengths, dtype=np.int64))
        return batch.replace(masked_M=torch.from_numpy(positions_M), labels_M=torch.from_numpy(labels_M))

    def loss(self, model: CausalModel, batch: Packed) -> Loss:
        """Cross-entropy summed over the next tokens; logs the number predicted right as `correct`.

        Raises:
            InputError: the model's encoder is not causal.
        """
        assert batch.masked_M is not None, "corrupt the batch first"
        check_direction(self, model.config)
        total, correct = model.masked_loss(batch)
        return Loss(sum=total, weight=batch.masked_M.numel(), logs={"correct": correct})
