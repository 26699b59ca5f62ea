"""What the training benchmarks share: real batches, our model and transformers' of the same size, timed steps.

Shapes: B documents, S padded length.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from terrazzo.data.tokenizer import encode_batch, train_tokenizer
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.packed import Packed

MASK_RATE = 0.30
MASK_ID = 4


@dataclass(frozen=True)
class Batch:
    """The same documents and masks, packed for us and padded for the peers."""

    packed: Packed
    ids_BS: Tensor
    mask_BS: Tensor
    labels_BS: Tensor

    @property
    def valid(self) -> float:
        """Share of the padded slots that hold a token."""
        return self.packed.num_tokens / self.ids_BS.numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.packed.to(device), self.ids_BS.to(device), self.mask_BS.to(device), self.labels_BS.to(device))


def wikipedia(root: Path | None, megabytes: float) -> list[str]:
    """Paragraphs of English Wikipedia articles.

    Raises:
        InputError: `root` holds no enwiki folder.
    """
    parts = sorted((root / "enwiki").glob("*.jsonl")) if root else []
    if not parts:
        raise InputError(f"{root}/enwiki: no JSON lines of English Wikipedia; give --data-root or set TERRAZZO_DATA")
    paragraphs, read = [], 0
    with open(parts[0], encoding="utf-8") as lines:
        for line in lines:
            paragraphs += [p for p in json.loads(line)["text"].split("\n") if p.strip()]
            read += len(line)
            if read >= megabytes * 1e6:
                break
    return paragraphs


def documents(paragraphs: list[str], vocab_size: int, max_len: int) -> list[np.ndarray]:
    """Token ids of each paragraph with its special tokens, cut at `max_len`; the vocabulary is trained on them."""
    tokenizer = train_tokenizer(lambda: paragraphs, "wordpiece", vocab_size, lowercase=True, shrink=True)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    rows = encode_batch(tokenizer, paragraphs)
    return [np.asarray([cls, *ids[: max_len - 2], sep]) for ids in rows if ids]


def batches(rows: list[np.ndarray], size: int, max_len: int, valid: float, seed: int = 0) -> Iterator[Batch]:
    """Endless random batches of `size` documents whose padded form is `valid` full, within 2 %; 1.0 takes full ones."""
    generator = np.random.default_rng(seed)
    lengths = np.asarray([len(row) for row in rows])
    pool = np.flatnonzero(lengths == max_len) if valid == 1.0 else np.arange(len(rows))
    while True:
        chosen = generator.choice(pool, size, replace=False)
        if abs(lengths[chosen].sum() / (size * max_len) - valid) > 0.02:
            continue
        yield _batch([rows[i] for i in sorted(chosen, key=lambda i: lengths[i])], max_len, generator)


def _batch(chosen: list[np.ndarray], max_len: int, generator: np.random.Generator) -> Batch:
    plain = Packed.from_sequences(chosen)
    inner = torch.ones(plain.num_tokens, dtype=torch.bool)
    ends = plain.cu_seqlens.long()
    inner[ends[:-1]] = inner[ends[1:] - 1] = False
    hit = inner & torch.from_numpy(generator.random(plain.num_tokens) < MASK_RATE)
    masked_M = hit.nonzero().flatten()
    tokens_T = plain.tokens_T.masked_fill(hit, MASK_ID)
    packed = plain.replace(tokens_T=tokens_T, masked_M=masked_M, labels_M=plain.tokens_T[masked_M])
    labels_T = plain.tokens_T.masked_fill(~hit, -100)

    def padded(values_T: Tensor, fill: int) -> Tensor:
        out = values_T.new_full((plain.num_documents, max_len), fill)
        out[plain.document_T, plain.positions_T] = values_T
        return out

    return Batch(packed, padded(tokens_T, 0), padded(torch.ones_like(tokens_T), 0), padded(labels_T, -100))


def ours(vocab_size: int, width: int, depth: int, heads: int, inner: int, **fields: Any) -> MaskedLM:
    """A MosaicBERT without dropout."""
    shape: dict[str, Any] = {"width": width, "depth": depth, "num_heads": heads, "mlp_width": inner, "dropout": 0.0}
    return MaskedLM(EncoderConfig(vocab_size=vocab_size, **shape, **fields))


def hf_bert(vocab_size: int, width: int, depth: int, heads: int, inner: int, max_len: int) -> nn.Module:
    """transformers BERT with SDPA attention, without dropout, which would cost its attention the fast path."""
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=max_len,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


def hf_modernbert(vocab_size: int, width: int, depth: int, heads: int, inner: int) -> nn.Module:
    """transformers ModernBERT with SDPA attention that decodes masked positions only."""
    config = transformers.ModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        sparse_prediction=True,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    return transformers.ModernBertForMaskedLM(config)


@dataclass
class Trainer:
    """A model with fused AdamW, and one training step on a batch."""

    model: nn.Module
    dtype: torch.dtype
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype) -> Trainer:
        """Ready to train, fp32 weights, products in `dtype`."""
        return cls(model.train(), dtype, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))

    def step(self, batch: Batch) -> Tensor:
        """Forward, backward, update; returns the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch.ids_BS.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            if isinstance(self.model, MaskedLM):
                total, _ = self.model.masked_loss(batch.packed)
                assert batch.packed.masked_M is not None
                loss = total / batch.packed.masked_M.numel()
            else:
                loss = self.model(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, labels=batch.labels_BS).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def interleaved(
    trainers: dict[str, Trainer], stream: Iterator[Batch], rounds: int, clock: Callable[[], float] = time.process_time
) -> tuple[dict[str, list[float]], list[Batch]]:
    """Seconds of one step of each trainer, A-B-C-A-B-C, every round on one new batch, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    used = []
    for turn, batch in zip(range(rounds + 1), stream, strict=False):
        for name, trainer in trainers.items():
            begin = clock()
            trainer.step(batch)
            if turn:
                seconds[name].append(clock() - begin)
        if turn:
            used.append(batch)
    return seconds, used
