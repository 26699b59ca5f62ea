"""Documents through an encoder and out of a head: the one path of `encode`, `predict` and the server.

Shapes: T packed tokens, B documents, D width, M masked tokens, K guesses for each, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.nn import MaskedLM
from terrazzo.packed import Packed
from terrazzo.runtime import Runtime, share_threads
from terrazzo.tasks.batches import by_shares, collate
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.task import Encoded

#: `encoder(batch, select_M)`: an `nn.Encoder`, or any runtime.
EncoderLike = Callable[..., Tensor]
#: What is computed from an encoder and a batch: one value a document, in their order.
Forward = Callable[[EncoderLike, Packed], Sequence[Any]]
Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max")
#: Logits that exist at a time while masks are filled: 16 MB.
_LOGITS = 2**22


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a masked token could be: its text, its id and its probability."""

    token: str
    id: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What the masked tokens of one document could be, the likeliest first.

    Args:
        ids_MK: int64; probabilities_MK: float32.
    """

    ids_MK: np.ndarray
    probabilities_MK: np.ndarray


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


def fill(model: MaskedLM, tokenizer: Tokenizer, top_k: int) -> Forward:
    """The `top_k` likeliest tokens at each of a document's `positions`, best first: a list of lists a document."""
    guesses = guess(model, top_k)

    def forward(encoder: EncoderLike, batch: Packed) -> Sequence[list[list[Prediction]]]:
        return predictions(guesses(encoder, batch), tokenizer)

    return forward


def guess(model: MaskedLM, top_k: int) -> Forward:
    """The `Guesses` of each document, `top_k` at each of its `positions`, or all there are; not yet as text."""
    top_k = min(top_k, model.config.vocab_size)
    rows = max(1, _LOGITS // model.config.vocab_size)

    def forward(encoder: EncoderLike, batch: Packed) -> Sequence[Guesses]:
        assert batch.masked_M is not None, "no document says where its masks are"
        hidden_MD = encoder(batch, batch.masked_M)
        # Made beforehand: small pieces that stay, between large ones that go, would hold the memory of these.
        ids_MK = np.empty((len(hidden_MD), top_k), dtype=np.int64)
        probabilities_MK = np.empty((len(hidden_MD), top_k), dtype=np.float32)
        for first in range(0, len(hidden_MD), rows):
            part = slice(first, first + rows)
            best = model.logits(hidden_MD[part]).float().softmax(-1).topk(top_k)
            ids_MK[part], probabilities_MK[part] = best.indices.cpu(), best.values.cpu()
        ends = torch.searchsorted(batch.masked_M, batch.cu_seqlens[1:].long()).tolist()
        return [
            Guesses(ids_MK=ids_MK[first:last], probabilities_MK=probabilities_MK[first:last])
            for first, last in zip([0, *ends], ends, strict=False)
        ]

    return forward


def predictions(documents: Sequence[Guesses], tokenizer: Tokenizer) -> list[list[list[Prediction]]]:
    """Guesses as text, documents x masks x guesses; each token is decoded once."""
    used = np.unique(np.concatenate([one.ids_MK.ravel() for one in documents])).tolist() if documents else []
    tokens = dict(zip(used, tokenizer.decode_batch([[token] for token in used]), strict=True))
    return [
        [
            [Prediction(token=tokens[i], id=i, probability=p) for i, p in zip(*mask, strict=True)]
            for mask in zip(one.ids_MK.tolist(), one.probabilities_MK.tolist(), strict=True)
        ]
        for one in documents
    ]


@torch.inference_mode()
def run(encoder: EncoderLike, documents: Sequence[Encoded], forwards: Sequence[Forward]) -> list[Any]:
    """One batch: what `forwards[i]` makes of `documents[i]`, in their order.

    Documents of one head run as one packed batch; where there are several heads the encoder still runs once over all
    documents, and each head sees its own.
    """
    if len({id(forward) for forward in forwards}) == 1:
        return list(forwards[0](encoder, collate(documents).to(device_of(encoder))))
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


def run_chunks(
    runtime: Runtime, chunks: Iterable[Sequence[Encoded]], forward: Forward, batch_tokens: int | None = None
) -> Iterator[list[Any]]:
    """What `forward` makes of every document, chunk by chunk, each in the order of its documents.

    Documents of a chunk are sorted by length and run `runtime.streams` batches at a time, while the next chunk is read;
    a value does not depend on the other documents. A document without tokens gives None.

    Args:
        batch_tokens: tokens that run at a time, or one document where it is longer; None takes the runtime's.
    """
    threads = torch.get_num_threads()
    tokens = runtime.batch_tokens if batch_tokens is None else batch_tokens
    pool = ThreadPoolExecutor(runtime.streams, initializer=share_threads, initargs=(threads, runtime.streams))
    waiting: deque[_Running] = deque()
    try:
        for documents in chunks:
            waiting.append(_Running(pool, runtime, documents, forward, tokens))
            if len(waiting) > 1:
                yield waiting.popleft().results()
        while waiting:
            yield waiting.popleft().results()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # streams have changed what all threads of the process share


class _Running:
    """A chunk of documents on its way."""

    def __init__(
        self, pool: ThreadPoolExecutor, runtime: Runtime, documents: Sequence[Encoded], forward: Forward, tokens: int
    ) -> None:
        lengths = [len(document.ids) for document in documents]
        self.size, self.parts = len(documents), list(by_shares(lengths, tokens, runtime.streams, runtime.pads))
        self.values: list[Future[list[Any]]] = []
        for part in self.parts:
            own = [documents[index] for index in part]
            if len(self.parts) > 1:
                self.values.append(pool.submit(run, runtime, own, [forward] * len(own)))
            else:
                self.values.append(_done(run(runtime, own, [forward] * len(own))))  # here, on all threads

    def results(self) -> list[Any]:
        results: list[Any] = [None] * self.size
        for part, values in zip(self.parts, self.values, strict=True):
            for index, value in zip(part, values.result(), strict=True):
                results[index] = value
        return results


def _done(values: list[Any]) -> Future[list[Any]]:
    future: Future[list[Any]] = Future()
    future.set_result(values)
    return future


def device_of(encoder: EncoderLike) -> torch.device:
    """Where an encoder wants its batches."""
    if isinstance(encoder, nn.Module):
        return next(encoder.parameters()).device
    return encoder.device if isinstance(encoder, Runtime) else torch.device("cpu")


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
