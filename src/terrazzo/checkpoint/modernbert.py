"""ModernBERT (arXiv 2412.13663) as transformers stores it, in its first form and in that of transformers 5."""

from __future__ import annotations

from typing import Any

from terrazzo.checkpoint.fields import ACTIVATIONS, PUBLISHED_ACTIVATIONS, Fields, refuse_other_machines
from terrazzo.checkpoint.formats import Format, SpecialIds
from terrazzo.nn import EncoderConfig

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def _read(fields: Fields) -> dict[str, Any]:
    refuse_other_machines(fields)
    depth = fields.get("num_hidden_layers", 22)
    window, global_every = _read_windows(fields, depth)
    theta = _read_theta(fields, _GLOBAL, fields.get("global_rope_theta", 160_000.0))
    local_theta = _read_theta(fields, _LOCAL, fields.values.get("local_rope_theta", 10_000.0) or theta)
    return {
        "vocab_size": fields.get("vocab_size", 50368),
        "width": fields.get("hidden_size", 768),
        "depth": depth,
        "num_heads": fields.get("num_attention_heads", 12),
        "mlp_width": fields.get("intermediate_size", 1152),
        "activation": fields.translate("hidden_activation", ACTIVATIONS, "gelu"),
        "positions": "rope",
        "max_len": fields.get("max_position_embeddings", 8192),
        "rope_theta": theta,
        "local_rope_theta": None if local_theta == theta else local_theta,
        "window": window,
        "global_every": global_every,
        "norm_placement": "pre",
        "norm_eps": fields.get("norm_eps", 1e-5),
        "norm_bias": fields.get("norm_bias", False),
        "final_norm": True,
        "skip_first_norm": True,
        "attention_bias": fields.get("attention_bias", False),
        "mlp_in_bias": fields.get("mlp_bias", False),
        "mlp_out_bias": fields.get("mlp_bias", False),
        "token_types": 0,
        # The publisher's dropout sits before the MLP's second product, ours behind it: the nearest that there is.
        "dropout": fields.get("mlp_dropout", 0.0),
        "attention_dropout": fields.get("attention_dropout", 0.0),
        "head_activation": fields.translate("classifier_activation", ACTIVATIONS, "gelu"),
        "head_dense_bias": fields.get("classifier_bias", False),
        "head_bias": fields.get("decoder_bias", True),
        "init": "megatron",
        "init_std": fields.get("initializer_range", 0.02),
    }


def _read_windows(fields: Fields, depth: int) -> tuple[int | None, int]:
    """`(window, global_every)` of the layer types."""
    window, every = fields.get("local_attention", 128), fields.get("global_attn_every_n_layers", 3)
    types = fields.get("layer_types", [_LOCAL if layer % every else _GLOBAL for layer in range(depth)])
    if types == [_GLOBAL] * depth and (depth > 1 or every == 1):
        return None, 1
    for candidate in (every, *range(1, depth + 1)):
        if types == _layer_types(depth, window, candidate):
            return window, candidate
    raise fields.error("layer_types", types, "the global layers must be every n-th one, starting with the first")


def _layer_types(depth: int, window: int | None, every: int) -> list[str]:
    if window is None:
        return [_GLOBAL] * depth
    return [_GLOBAL if every > 1 and layer % every == 0 else _LOCAL for layer in range(depth)]


def _read_theta(fields: Fields, layer_type: str, older: float) -> float:
    """The rotation base of one kind of layer, from the nested form, or the `older` flat field's value without one."""
    fields.refuse_unless("rope_scaling")
    nested = fields.get("rope_parameters", {})
    if set(nested) - {_GLOBAL, _LOCAL}:
        raise fields.error("rope_parameters", nested, f"the keys must be {_GLOBAL!r} and {_LOCAL!r}")
    own = nested.get(layer_type) or {}
    if set(own) - {"rope_theta", "rope_type"} or own.get("rope_type", "default") != "default":
        raise fields.error("rope_parameters", own, "only rope_theta with rope_type 'default' can be represented")
    return float(own.get("rope_theta") or older)


def _write(config: EncoderConfig, special: SpecialIds) -> dict[str, Any]:
    theta, local_theta = config.rope_theta, config.local_rope_theta or config.rope_theta
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_activation": PUBLISHED_ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_len,
        "layer_types": _layer_types(config.depth, config.window, config.global_every),
        "global_attn_every_n_layers": config.global_every,
        "local_attention": config.window or 128,
        "rope_parameters": {
            _GLOBAL: {"rope_type": "default", "rope_theta": theta},
            _LOCAL: {"rope_type": "default", "rope_theta": local_theta},
        },
        "global_rope_theta": theta,
        "local_rope_theta": local_theta,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_in_bias,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "classifier_activation": PUBLISHED_ACTIVATIONS[config.head_activation],
        "classifier_bias": config.head_dense_bias,
        "decoder_bias": config.head_bias,
        "initializer_range": config.init_std,
        "pad_token_id": special.get("pad"),
        "bos_token_id": special.get("cls"),
        "eos_token_id": special.get("sep"),
        "cls_token_id": special.get("cls"),
        "sep_token_id": special.get("sep"),
    }


MODERNBERT = Format(
    model_types=("modernbert",),
    encoder_class="ModernBertModel",
    masked_lm_class="ModernBertForMaskedLM",
    read=_read,
    write=_write,
    names={
        "encoder.embeddings.tokens": ("embeddings.tok_embeddings",),
        "encoder.embeddings.norm": ("embeddings.norm",),
        "encoder.blocks.#.attention_norm": ("layers.#.attn_norm",),
        "encoder.blocks.#.attention.qkv": ("layers.#.attn.Wqkv",),
        "encoder.blocks.#.attention.out": ("layers.#.attn.Wo",),
        "encoder.blocks.#.mlp_norm": ("layers.#.mlp_norm",),
        "encoder.blocks.#.mlp.up": ("layers.#.mlp.Wi",),
        "encoder.blocks.#.mlp.down": ("layers.#.mlp.Wo",),
        "encoder.final_norm": ("final_norm",),
        "head.dense": ("head.dense",),
        "head.norm": ("head.norm",),
        "head.bias": ("decoder.bias",),
    },
    prefix="model.",
    tied={"decoder.weight": "embeddings.tok_embeddings.weight"},
    ignored=r"classifier\.|.*rotary_emb\.",
    classifier_head=r"head\.",
)
