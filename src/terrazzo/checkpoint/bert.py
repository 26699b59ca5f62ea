"""BERT, RoBERTa and their namesakes, and MosaicBERT as MosaicML published it."""

from __future__ import annotations

from typing import Any

from terrazzo.checkpoint.fields import ACTIVATIONS, PUBLISHED_ACTIVATIONS, Fields, refuse_other_machines
from terrazzo.checkpoint.formats import Format, SpecialIds
from terrazzo.nn import EncoderConfig

_BODY = {
    "encoder.embeddings.tokens": ("embeddings.word_embeddings",),
    "encoder.embeddings.positions": ("embeddings.position_embeddings",),
    "encoder.embeddings.token_types": ("embeddings.token_type_embeddings",),
    "encoder.embeddings.norm": ("embeddings.LayerNorm",),
    "encoder.blocks.#.attention.qkv": tuple(f"encoder.layer.#.attention.self.{x}" for x in ("query", "key", "value")),
    "encoder.blocks.#.attention.out": ("encoder.layer.#.attention.output.dense",),
    "encoder.blocks.#.attention_norm": ("encoder.layer.#.attention.output.LayerNorm",),
    "encoder.blocks.#.mlp.up": ("encoder.layer.#.intermediate.dense",),
    "encoder.blocks.#.mlp.down": ("encoder.layer.#.output.dense",),
    "encoder.blocks.#.mlp_norm": ("encoder.layer.#.output.LayerNorm",),
}
_BERT_HEAD = {
    "head.dense": ("cls.predictions.transform.dense",),
    "head.norm": ("cls.predictions.transform.LayerNorm",),
    "head.bias": ("cls.predictions.bias",),
}
_BERT_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_IGNORED = r"pooler\.|cls\.seq_relationship\.|classifier\.|qa_outputs\.|embeddings\.(position|token_type)_ids$"


def _read_shape(fields: Fields) -> dict[str, Any]:
    """What all three have in common: post-norm, LayerNorm, biased attention, segments."""
    refuse_other_machines(fields)
    return {
        "vocab_size": fields.get("vocab_size", 30522),
        "width": fields.get("hidden_size", 768),
        "depth": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", 12),
        "mlp_width": fields.get("intermediate_size", 3072),
        "norm_eps": fields.get("layer_norm_eps", 1e-12),
        "token_types": fields.get("type_vocab_size", 2),
        "dropout": fields.get("hidden_dropout_prob", 0.1),
        "init_std": fields.get("initializer_range", 0.02),
    }


def _read_bert(fields: Fields) -> dict[str, Any]:
    activation = fields.translate("hidden_act", ACTIVATIONS, "gelu")
    return {
        **_read_shape(fields),
        "positions": "learned",
        "max_len": fields.get("max_position_embeddings", 512),
        "gated": False,
        "mlp_in_bias": True,
        "activation": activation,
        "head_activation": activation,
        "attention_dropout": fields.get("attention_probs_dropout_prob", 0.1),
        "low_precision_norm": False,
    }


def _read_roberta(fields: Fields) -> dict[str, Any]:
    # Positions count from the row after the padding token's, and the head is GELU whatever the blocks use.
    offset = fields.get("pad_token_id", 1) + 1
    rows = fields.get("max_position_embeddings", 512)
    own = {"position_offset": offset, "max_len": rows - offset, "head_activation": "gelu"}
    return {**_read_bert(fields), "vocab_size": fields.get("vocab_size", 50265), **own}


def _read_mosaic(fields: Fields) -> dict[str, Any]:
    fields.refuse_unless("layer_norm_eps", 1e-12)
    return {
        **_read_shape(fields),
        "positions": "alibi",
        "max_len": fields.get("alibi_starting_size", 512),
        "head_activation": fields.translate("hidden_act", ACTIVATIONS, "gelu"),
        "attention_dropout": fields.get("attention_probs_dropout_prob", 0.0),
    }


def _write_bert(config: EncoderConfig, special: SpecialIds) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": PUBLISHED_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_len,
        "type_vocab_size": config.token_types,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_eps,
        "position_embedding_type": "absolute",
        "pad_token_id": special.get("pad", 0),
    }


def _write_roberta(config: EncoderConfig, special: SpecialIds) -> dict[str, Any]:
    own = {
        "max_position_embeddings": config.max_len + config.position_offset,
        "pad_token_id": special.get("pad", config.position_offset - 1),
        "bos_token_id": special.get("cls"),
        "eos_token_id": special.get("sep"),
    }
    return _write_bert(config, special) | own


BERT = Format(
    model_types=("bert",),
    encoder_class="BertModel",
    masked_lm_class="BertForMaskedLM",
    read=_read_bert,
    write=_write_bert,
    names=_BODY | _BERT_HEAD,
    prefix="bert.",
    tied=_BERT_TIED,
    ignored=_IGNORED,
)

ROBERTA = Format(
    model_types=("roberta", "xlm-roberta", "camembert"),
    encoder_class="RobertaModel",
    masked_lm_class="RobertaForMaskedLM",
    read=_read_roberta,
    write=_write_roberta,
    names=_BODY
    | {"head.dense": ("lm_head.dense",), "head.norm": ("lm_head.layer_norm",), "head.bias": ("lm_head.bias",)},
    prefix="roberta.",
    tied={"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    ignored=_IGNORED,
)

#: Names and shapes of mosaicml/mosaic-bert-base, whose config says "bert" and has `alibi_starting_size`.
#: Reference: github.com/mosaicml/examples, examples/benchmarks/bert/src/bert_layers.py.
MOSAIC = Format(
    model_types=("bert",),
    encoder_class="BertModel",
    masked_lm_class="BertForMaskedLM",
    read=_read_mosaic,
    write=None,
    names=_BODY
    | _BERT_HEAD
    | {
        "encoder.blocks.#.attention.qkv": ("encoder.layer.#.attention.self.Wqkv",),
        "encoder.blocks.#.mlp.up": ("encoder.layer.#.mlp.gated_layers",),
        "encoder.blocks.#.mlp.down": ("encoder.layer.#.mlp.wo",),
        "encoder.blocks.#.mlp_norm": ("encoder.layer.#.mlp.layernorm",),
    },
    prefix="bert.",
    tied=_BERT_TIED,
    ignored=_IGNORED,
)
