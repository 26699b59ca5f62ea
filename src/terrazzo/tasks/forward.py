"""Documents through an encoder and out of a head: the one path of `encode`, `predict` and the server.

Shapes: T packed tokens, B documents, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.packed import Packed
from terrazzo.tasks.batches import collate
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.task import Encoded

#: `encoder(batch, select_M)`: an `nn.Encoder`, or any runtime.
EncoderLike = Callable[..., Tensor]
#: What is computed from an encoder and a batch: one value a document, in their order.
Forward = Callable[[EncoderLike, Packed], Sequence[Any]]
Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max")


def embed(pooling: Pooling = "mean", normalize: bool = False) -> Forward:
    """One float32 vector `(D,)` a document: the mean or maximum over all of its tokens, or its first token's state."""

    def forward(encoder: EncoderLike, batch: Packed) -> Sequence[np.ndarray]:
        if pooling == "cls":
            vectors_BD = encoder(batch, batch.cu_seqlens[:-1]).float()
        else:
            lengths_B = batch.cu_seqlens.diff().long()
            vectors_BD = torch.segment_reduce(encoder(batch).float(), pooling, lengths=lengths_B, unsafe=True)
        return list((F.normalize(vectors_BD) if normalize else vectors_BD).cpu().numpy())

    return forward


def answer(model: TaskModel) -> Forward:
    """The outputs of a task's head for each document, as the task's `decode` takes them."""

    def forward(encoder: EncoderLike, batch: Packed) -> Sequence[np.ndarray]:
        return model.task.split(model.head(encoder, batch), batch)

    return forward


@torch.inference_mode()
def run(encoder: EncoderLike, documents: Sequence[Encoded], forwards: Sequence[Forward]) -> list[Any]:
    """One batch: what `forwards[i]` makes of `documents[i]`, in their order.

    Documents of one head run as one packed batch; where there are several heads the encoder still runs once over all
    documents, and each head sees its own.
    """
    if len({id(forward) for forward in forwards}) == 1:
        return list(forwards[0](encoder, collate(documents)))
    hidden_TD = encoder(_plain(documents))
    starts = np.cumsum([0, *(len(document.ids) for document in documents)])
    results: list[Any] = [None] * len(documents)
    for own in _by_forward(forwards):
        rows_T = torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in own]))
        seen = _Seen(hidden_TD[rows_T.to(hidden_TD.device)])
        values = forwards[own[0]](seen, collate([documents[i] for i in own]).to(hidden_TD.device))
        for index, value in zip(own, values, strict=True):
            results[index] = value
    return results


class _Seen:
    """An encoder that has already run: hands out the hidden states that it gave."""

    def __init__(self, hidden_TD: Tensor) -> None:
        self.hidden_TD = hidden_TD

    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        return self.hidden_TD if select_M is None else self.hidden_TD.index_select(0, select_M.long())


def _plain(documents: Sequence[Encoded]) -> Packed:
    """All documents as one batch that asks for every token's state."""
    tokens = [Encoded(ids=document.ids, token_types=document.token_types) for document in documents]
    return collate(tokens)


def _by_forward(forwards: Sequence[Forward]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, forward in enumerate(forwards):
        groups.setdefault(id(forward), []).append(index)
    return list(groups.values())
