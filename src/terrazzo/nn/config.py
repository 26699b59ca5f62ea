"""What an encoder is: every published variant is a value of these fields."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from terrazzo.config import config, nearest
from terrazzo.errors import InputError

GateKind = Literal["linear", "mlp"]


@config
class EncoderConfig:
    """The architecture of an encoder and of its masked-language-model head.

    The defaults are MosaicBERT-Base (arXiv 2312.17482): ALiBi, GeGLU, post-norm, biased attention.

    Args:
        vocab_size: tokens of the tokenizer; the embedding is padded up to a multiple of `pad_vocab_to`.
        mlp_width: inner width; a gated MLP holds three `width x mlp_width` matrices, a plain one two.
        gated: multiply the activation of one projection with a second one (GLU, arXiv 2002.05202).
        positions: "alibi" biases attention scores by distance, "learned" adds a table of `max_len` rows to the
            embeddings, "rope" rotates queries and keys.
        position_offset: first row of the learned table that is used (RoBERTa: 2).
        kept_heads: for each layer the heads that it has, by their number among `num_heads`; None means all. A layer
            without heads adds its output bias alone.
        mlp_widths: for each layer its inner width, from 0 (the output bias alone) up; None means `mlp_width`.
        causal: a token sees itself and earlier ones only, as in a decoder; for comparisons and left-to-right scores.
        window: tokens that a local layer sees, half on each side; None means every layer sees the whole document.
        global_every: with a window, layers 0, global_every, 2 * global_every, ... stay global (ModernBERT: 3).
        local_rope_theta: rotation base of the local layers; None means the same as `rope_theta`.
        softmax_gamma, softmax_zeta: the softmax of attention is stretched to [gamma, zeta] and clipped to [0, 1],
            so that weights can be exactly 0, or 1; gamma from 0 down (-0.025 for 128 tokens), zeta from 1 up. Such
            attention forms its weights explicitly. Published formats have no place for it, nor for gates.
        attention_gate: multiply each head's output by a gate that reads the head's slice of attention's input: one
            linear map a head, or an MLP a quarter of the head wide; None means no gate.
        gate_init: how far gates are open at first, between 0 and 1; gate_scaled: divide gates by it and begin with
            weights of zero, so that they change nothing at first, as a trained model needs it.
        binary: weights and inputs of the blocks' matrices, queries, keys and values are signs, and attention is 0 or 1
            (BiBERT); simulated in floats, trained through real weights. Norms, biases and embeddings stay real.
        binary_embeddings: with it, token embeddings too are binary, a scale a row; positions and segments stay real.
        low_precision_norm: in bf16 compute the norms in bf16 as MosaicBERT does; False computes them in fp32.
        attention_bias, mlp_in_bias, mlp_out_bias, norm_bias, head_dense_bias, head_bias: which terms exist.
        embedding_norm: a norm after the embeddings; final_norm: one after the last block (pre-norm models).
        skip_first_norm: a pre-norm model whose first attention reads the embeddings unnormed (ModernBERT).
        init: "normal" draws every matrix from N(0, init_std), BERT's; "megatron" cuts at 2 sigma and divides the output
            projections by sqrt(2 depth), ModernBERT's.
        max_len: longest document that the model is meant for; a hard limit with learned positions.
    """

    vocab_size: int
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    gated: bool = True
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    positions: Literal["alibi", "learned", "rope"] = "alibi"
    position_offset: int = 0
    max_len: int = 512
    kept_heads: tuple[tuple[int, ...], ...] | None = None
    mlp_widths: tuple[int, ...] | None = None
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    causal: bool = False
    window: int | None = None
    global_every: int = 1
    softmax_gamma: float = 0.0
    softmax_zeta: float = 1.0
    attention_gate: GateKind | None = None
    gate_init: float = 0.5
    gate_scaled: bool = False
    binary: bool = False
    binary_embeddings: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-12
    norm_placement: Literal["post", "pre"] = "post"
    low_precision_norm: bool = True
    norm_bias: bool = True
    embedding_norm: bool = True
    final_norm: bool = False
    skip_first_norm: bool = False
    attention_bias: bool = True
    mlp_in_bias: bool = False
    mlp_out_bias: bool = True
    token_types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.0
    head_activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    head_dense_bias: bool = True
    head_bias: bool = True
    pad_vocab_to: int = 64
    init: Literal["normal", "megatron"] = "normal"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "width",
            "depth",
            "num_heads",
            "mlp_width",
            "max_len",
            "pad_vocab_to",
            "global_every",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise InputError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.positions == "rope" and self.head_width % 2:
            raise InputError(f"rope needs an even head width, width / num_heads is {self.head_width}")
        self._check_layers()
        self._check_attention()
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def _check_layers(self) -> None:
        for name in ("kept_heads", "mlp_widths"):
            if (values := getattr(self, name)) is not None and len(values) != self.depth:
                raise InputError(f"{name} has {len(values)} layers, depth is {self.depth}")
        for layer, heads in enumerate(self.kept_heads or ()):
            if list(heads) != sorted(set(heads) & set(range(self.num_heads))):
                raise InputError(
                    f"kept_heads of layer {layer}: {heads}: not some of 0 to {self.num_heads - 1}, ascending"
                )
        for layer, width in enumerate(self.mlp_widths or ()):
            if width < 0:
                raise InputError(f"mlp_widths of layer {layer} is {width}, less than 0")

    def _check_attention(self) -> None:
        if not -1 < self.softmax_gamma <= 0:
            raise InputError(
                f"softmax_gamma must be in (-1, 0], got {self.softmax_gamma}: above 0 every token sees all"
            )
        if not 1 <= self.softmax_zeta < 2:
            raise InputError(f"softmax_zeta must be in [1, 2), got {self.softmax_zeta}")
        if self.binary and self.clips_softmax:
            raise InputError("softmax_gamma, softmax_zeta: binary attention has no softmax; leave them out")
        if self.binary_embeddings and not self.binary:
            raise InputError("binary_embeddings: set binary too, or leave it out")
        if not 0 < self.gate_init < 1:
            raise InputError(f"gate_init must be between 0 and 1, got {self.gate_init}")

    @property
    def clips_softmax(self) -> bool:
        """Whether attention has a clipped softmax in place of the plain one."""
        return self.softmax_gamma < 0 or self.softmax_zeta > 1

    @property
    def gate_width(self) -> int:
        """Inner width of a head's gate; 0 where gates are linear or there are none."""
        return max(1, self.head_width // 4) if self.attention_gate == "mlp" else 0

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    def layer_heads(self, layer: int) -> tuple[int, ...]:
        """The heads of block `layer`, by their number in a layer that has all."""
        return tuple(range(self.num_heads)) if self.kept_heads is None else self.kept_heads[layer]

    def layer_mlp_width(self, layer: int) -> int:
        """The inner width of block `layer`'s MLP."""
        return self.mlp_width if self.mlp_widths is None else self.mlp_widths[layer]

    def layer_window(self, layer: int) -> int | None:
        """The window of block `layer`, None where it is global."""
        return None if layer % self.global_every == 0 and self.global_every > 1 else self.window

    def replace(self, **fields: Any) -> EncoderConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **fields)


#: width, depth, heads, MLP width of each named size; `base` and `large` are the papers', the small ones follow
#: google/bert_uncased_L-*: tiny L2/128, mini L4/256, small L4/512.
_SHAPES = {
    "tiny": (128, 2, 2, 512),
    "mini": (256, 4, 4, 1024),
    "small": (512, 4, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
SIZES = tuple(_SHAPES)

_MODERNBERT_SHAPES = {
    "tiny": (128, 4, 2, 192),
    "mini": (256, 7, 4, 384),
    "small": (384, 10, 6, 576),
    "base": (768, 22, 12, 1152),
    "large": (1024, 28, 16, 2624),
}


def mosaicbert(size: str, vocab_size: int, **fields: Any) -> EncoderConfig:
    """MosaicBERT of a named size (arXiv 2312.17482): ALiBi, GeGLU, post-norm.

    The paper keeps the inner width of BERT, so a gated model has about a quarter more parameters (137 M against 110 M).
    """
    return _sized(_SHAPES, size, {"vocab_size": vocab_size, **fields})


def bert(size: str, vocab_size: int, **fields: Any) -> EncoderConfig:
    """BERT of a named size (arXiv 1810.04805): learned positions, plain GELU MLP, post-norm, dropout everywhere."""
    own = {"positions": "learned", "gated": False, "mlp_in_bias": True, "attention_dropout": 0.1}
    return _sized(_SHAPES, size, {"vocab_size": vocab_size, "low_precision_norm": False, **own, **fields})


def modernbert(size: str, vocab_size: int, **fields: Any) -> EncoderConfig:
    """ModernBERT of a named size (arXiv 2412.13663): RoPE, pre-norm, GeGLU, local attention in two of three layers."""
    own: dict[str, Any] = {
        "positions": "rope",
        "rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "window": 128,
        "global_every": 3,
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "final_norm": True,
        "skip_first_norm": True,
        "attention_bias": False,
        "mlp_out_bias": False,
        "token_types": 0,
        "dropout": 0.0,
        "head_dense_bias": False,
        "init": "megatron",
        "max_len": 8192,
    }
    return _sized(_MODERNBERT_SHAPES, size, {"vocab_size": vocab_size, **own, **fields})


FAMILIES = {"mosaicbert": mosaicbert, "bert": bert, "modernbert": modernbert}


def _sized(shapes: dict[str, tuple[int, int, int, int]], size: str, fields: dict[str, Any]) -> EncoderConfig:
    if size not in shapes:
        raise InputError(f"size {size!r}: {nearest(size, shapes)}")
    width, depth, num_heads, mlp_width = shapes[size]
    return EncoderConfig(**({"width": width, "depth": depth, "num_heads": num_heads, "mlp_width": mlp_width} | fields))
