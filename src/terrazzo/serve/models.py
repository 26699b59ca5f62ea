"""The models that a server holds: each folder by its name, encoders shared, folders reloaded when they are replaced.

Shapes: N inputs, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from terrazzo.errors import InputError
from terrazzo.tasks import Result
from terrazzo.tasks.forward import Pooling

#: True cuts what is too long; False and "error" refuse it with `TooLong`.
Truncate = bool | Literal["error"]


class TooLong(InputError):
    """An input has more tokens than the model reads: `index` of the input, its `tokens`, the `limit`."""

    index: int
    tokens: int
    limit: int


class UnknownModel(InputError):
    """No model of that name is served."""


class CannotDo(InputError):
    """The model has no head for what was asked."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of each input, special ones included: those that were read, and those that were cut."""

    tokens: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_len`: tokens of a document; `batch_tokens`: tokens of a batch; `queue_tokens`: tokens that may wait."""

    max_len: int
    batch_tokens: int
    queue_tokens: int


class Served(Protocol):
    """One model folder in use (a contract for the routes; the class takes its place)."""

    name: str
    folder: Path
    abilities: tuple[str, ...]  # "embed", then the task's kind, "rerank", "fill_mask", as far as the model has them
    labels: tuple[str, ...]  # classes or tags of the task, () without; of several problems as "problem/class"
    limits: Limits
    fingerprint: str  # of weights, architecture, tokenizer and head
    loaded: float  # time.time() of the load
    runtime: Any  # terrazzo.runtime.Runtime: name, precision, config
    engine: Any  # terrazzo.serve.engine.Engine

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        truncate: Truncate = True,
        pooling: Pooling = "mean",
        normalize: bool = True,
    ) -> tuple[np.ndarray, Usage]: ...  # float32 (N, D)

    async def predict(self, rows: Sequence[Any], *, truncate: Truncate = True) -> tuple[list[Result], Usage]: ...

    async def rerank(
        self, query: str, documents: Sequence[str], *, truncate: Truncate = True
    ) -> tuple[np.ndarray, Usage]: ...  # float64 (N,), in the order of the documents

    async def fill_mask(
        self, texts: Sequence[str], *, top_k: int = 5, truncate: Truncate = True
    ) -> tuple[list[list[list[Any]]], Usage]: ...  # api.Prediction: texts x masks x candidates

    async def tokenize(self, texts: Sequence[str], *, special: bool = True) -> list[Tokenized]: ...


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Token ids of a text, the tokens themselves, and their first and last-plus-one character."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class Models(Protocol):
    """The served models by name (a contract for the routes; the class takes its place).

    `await Models.open(["DIR", "NAME=DIR"], settings)`; `models[name]` raises UnknownModel; `len`, iteration over
    `Served`; `models.ready()` -> {name: why not | None}; `await models.drain(seconds)`; `await models.reload(name)`.
    """

    def __getitem__(self, name: str) -> Served: ...
    def __iter__(self) -> Iterator[Served]: ...
    def __len__(self) -> int: ...
    def ready(self) -> dict[str, str | None]: ...
