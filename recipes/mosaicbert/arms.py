"""MosaicBERT, BERT, and MosaicBERT with one ingredient taken out: models of one size that train on the same batches.

Shapes: T packed tokens, M masked positions, D width, V vocabulary, B documents, S padded length.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.padded import pad_batch, register
from terrazzo.config import config
from terrazzo.data import Corpus
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.packed import Packed


@config
class Arm:
    """One way to pretrain.

    Args:
        implementation: "terrazzo", or transformers' `BertForMaskedLM` for BERT the usual way.
        rate: share of the tokens to predict in training.
        padded: run every document at the full length.
        dense_head: decode every position and ignore all but the masked ones.
    """

    name: str
    label: str
    implementation: Literal["terrazzo", "transformers"] = "terrazzo"
    alibi: bool = True
    gated: bool = True
    rate: float = 0.30
    padded: bool = False
    dense_head: bool = False


MOSAICBERT = Arm(name="mosaicbert", label="MosaicBERT")
BERT = Arm(
    name="bert",
    label="BERT the usual way",
    implementation="transformers",
    alibi=False,
    gated=False,
    rate=0.15,
    padded=True,
    dense_head=True,
)
ABLATIONS = (
    Arm(name="alibi", label="learned positions", alibi=False),
    Arm(name="geglu", label="plain GELU MLP", gated=False),
    Arm(name="unpadding", label="padded", padded=True),
    Arm(name="masked_head", label="head on all positions", dense_head=True),
    Arm(name="mask_rate", label="masking 15 %", rate=0.15),
)
ARMS = {arm.name: arm for arm in (MOSAICBERT, BERT, *ABLATIONS)}


@config
class Shape:
    """The size that all arms share; the gated MLP takes 2/3 of `mlp_width`, so that parameters are equal.

    Args:
        init_std: of all weights; the paper's 0.02 at width 768, grown with 1 / sqrt(width).
    """

    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int = 512
    max_len: int = 128
    dropout: float = 0.0
    init_std: float = 0.05

    def gated_width(self) -> int:
        """Inner width of the gated MLP, a multiple of 8."""
        return round(self.mlp_width * 2 / 3 / 8) * 8


def encoder_config(arm: Arm, shape: Shape, corpus: Corpus) -> EncoderConfig:
    """The architecture of an arm."""
    return EncoderConfig(
        vocab_size=corpus.vocab_size,
        width=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_width=shape.gated_width() if arm.gated else shape.mlp_width,
        gated=arm.gated,
        mlp_in_bias=not arm.gated,
        positions="alibi" if arm.alibi else "learned",
        max_len=shape.max_len,
        dropout=shape.dropout,
        init_std=shape.init_std,
    )


class OursLM(nn.Module):
    """Our model, with the batch's documents padded or the head on all positions where the arm says so."""

    def __init__(self, arm: Arm, shape: Shape, corpus: Corpus) -> None:
        super().__init__()
        self.arm, self.max_len, self.pad = arm, shape.max_len, corpus.special.pad
        fields = encoder_config(arm, shape, corpus)
        self.model = MaskedLM(fields, register(self.pad) if arm.padded else None)

    def forward(self, batch: Packed) -> Tensor:
        """Cross-entropy summed over the masked tokens."""
        if self.arm.padded:
            batch = pad_batch(batch, self.max_len, self.pad)
        return self._dense_loss(batch) if self.arm.dense_head else self.model.masked_loss(batch)[0]

    def _dense_loss(self, batch: Packed) -> Tensor:
        assert batch.masked_M is not None and batch.labels_M is not None
        hidden_TD, size = self.model.head(self.model.encoder(batch)), self.model.config.vocab_size
        bias = self.model.head.bias
        assert bias is not None
        logits_TV = F.linear(hidden_TD, self.model.encoder.embeddings.tokens.weight[:size], bias[:size])
        labels_T = torch.full_like(batch.tokens_T, -100)
        labels_T[batch.masked_M] = batch.labels_M
        return F.cross_entropy(logits_TV, labels_T, ignore_index=-100, reduction="sum")


class TransformersLM(nn.Module):
    """BERT the usual way: transformers' model on rows padded to the full length, logits at every slot."""

    def __init__(self, shape: Shape, corpus: Corpus) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        self.max_len, self.pad = shape.max_len, corpus.special.pad
        fields = BertConfig(
            vocab_size=corpus.vocab_size,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.mlp_width,
            max_position_embeddings=shape.max_len,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            initializer_range=shape.init_std,
            pad_token_id=self.pad,
        )
        self.model = BertForMaskedLM._from_config(fields, attn_implementation="sdpa")

    def forward(self, batch: Packed) -> Tensor:
        """Cross-entropy summed over the masked tokens."""
        padded = pad_batch(batch, self.max_len, self.pad)
        assert padded.masked_M is not None and padded.labels_M is not None
        labels = torch.full_like(padded.tokens_T, -100)
        labels[padded.masked_M] = padded.labels_M
        ids_BS = padded.tokens_T.view(-1, self.max_len)
        real_BS = (ids_BS != self.pad).long()
        loss: Tensor = self.model(input_ids=ids_BS, attention_mask=real_BS, labels=labels.view_as(ids_BS)).loss
        return loss * padded.labels_M.numel()


def build(arm: Arm, shape: Shape, corpus: Corpus, seed: int) -> nn.Module:
    """The arm's model with weights drawn from `seed`: called with a corrupted batch it returns the summed loss."""
    torch.manual_seed(seed)
    return TransformersLM(shape, corpus) if arm.implementation == "transformers" else OursLM(arm, shape, corpus)
