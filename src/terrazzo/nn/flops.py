"""Floating-point operations of a batch, counted from shapes: the work that matrix products must do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terrazzo.nn.config import EncoderConfig


def forward_flops(config: EncoderConfig, lengths: Sequence[int] | np.ndarray, num_masked: int | None = None) -> float:
    """Operations (a multiply-add is two) of one forward pass over documents of these lengths.

    With `num_masked` the head and the last block's output projection and MLP run on that many tokens alone, and the decoder
    is counted; None counts the encoder without a head.
    """
    sizes = np.asarray(lengths, dtype=np.float64)
    num_tokens, width = sizes.sum(), config.width
    mlp = (3 if config.gated else 2) * width * config.mlp_width
    tail_tokens = num_tokens if num_masked is None else num_masked
    full_blocks = 2 * num_tokens * (config.depth - 1) * (4 * width**2 + mlp)
    last_block = 2 * num_tokens * 3 * width**2 + 2 * tail_tokens * (width**2 + mlp)
    head = 0.0 if num_masked is None else 2 * num_masked * (width**2 + width * config.vocab_size)
    return float(full_blocks + last_block + head + _attention_flops(config, sizes))


def training_flops(config: EncoderConfig, lengths: Sequence[int] | np.ndarray, num_masked: int) -> float:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops(config, lengths, num_masked)


def _attention_flops(config: EncoderConfig, sizes: np.ndarray) -> float:
    total = 0.0
    for layer in range(config.depth):
        window = config.layer_window(layer)
        seen = sizes if window is None else np.minimum(sizes, window + 1)
        total += float(4 * config.width * (sizes * seen).sum())
    return total
