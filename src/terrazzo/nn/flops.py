"""Sizes from shapes alone: parameters of a model, and the operations that its matrix products must do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terrazzo.nn.config import EncoderConfig


def parameter_count(config: EncoderConfig) -> int:
    """Parameters of an encoder with its masked-language-model head (biases and norms included)."""
    width = config.width
    norm = width * (2 if config.norm == "layer" and config.norm_bias else 1)
    blocks = config.depth * 2 * norm
    for layer in range(config.depth):
        heads, inner = _inner_widths(config, layer)
        blocks += 4 * width * heads + (3 * heads + width if config.attention_bias else 0)
        blocks += (3 if config.gated else 2) * width * inner + (width if config.mlp_out_bias else 0)
        blocks += inner * (2 if config.gated else 1) if config.mlp_in_bias else 0
        hidden, last = _gate_products(config, layer)
        blocks += hidden + last + len(config.layer_heads(layer)) * ((config.gate_width + 1) if last else 0)
    tables = config.padded_vocab_size + config.token_types
    tables += config.max_len + config.position_offset if config.positions == "learned" else 0
    head = width**2 + (width if config.head_dense_bias else 0) + norm
    head += config.padded_vocab_size if config.head_bias else 0
    norms = norm * (config.embedding_norm + config.final_norm - config.skip_first_norm)
    return tables * width + norms + blocks + head


def forward_flops(config: EncoderConfig, lengths: Sequence[int] | np.ndarray, num_masked: int | None = None) -> float:
    """Operations (a multiply-add is two) of one forward pass over documents of these lengths.

    With `num_masked` the head and the last block's output projection and MLP run on that many tokens alone, and the
    decoder is counted; None counts the encoder without a head.
    """
    sizes = np.asarray(lengths, dtype=np.float64)
    num_tokens, width = sizes.sum(), config.width
    tail_tokens = num_tokens if num_masked is None else num_masked
    blocks = 0.0
    for layer in range(config.depth):
        heads, inner = _inner_widths(config, layer)
        after = tail_tokens if layer == config.depth - 1 else num_tokens
        mlp = (3 if config.gated else 2) * inner
        blocks += 2 * width * (num_tokens * 3 * heads + after * (heads + mlp))
        blocks += 2 * after * sum(_gate_products(config, layer))
    head = 0.0 if num_masked is None else 2 * num_masked * (width**2 + width * config.vocab_size)
    return float(blocks + head + _attention_flops(config, sizes))


def training_flops(config: EncoderConfig, lengths: Sequence[int] | np.ndarray, num_masked: int) -> float:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops(config, lengths, num_masked)


def _attention_flops(config: EncoderConfig, sizes: np.ndarray) -> float:
    total = 0.0
    for layer in range(config.depth):
        window = config.layer_window(layer)
        if config.causal:  # 1, 2, ... tokens, until the window's half is full
            most = sizes if window is None else np.minimum(sizes, window // 2 + 1)
            seen = most * (1 - (most - 1) / (2 * sizes))
        else:
            seen = sizes if window is None else np.minimum(sizes, window + 1)
        total += float(4 * _inner_widths(config, layer)[0] * (sizes * seen).sum())
    return total


def _inner_widths(config: EncoderConfig, layer: int) -> tuple[int, int]:
    """Of all heads of a layer together, and of its MLP."""
    return len(config.layer_heads(layer)) * config.head_width, config.layer_mlp_width(layer)


def _gate_products(config: EncoderConfig, layer: int) -> tuple[int, int]:
    """Weights of the gates of a layer's heads: those before and those after the inner width."""
    if config.attention_gate is None:
        return 0, 0
    heads, inner = len(config.layer_heads(layer)), config.gate_width
    return heads * config.head_width * inner, heads * (inner or config.head_width)
