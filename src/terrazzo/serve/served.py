"""One model folder in use: what it can do, and the requests that it answers.

Shapes: N inputs, D width, M masked positions.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from terrazzo.errors import InputError
from terrazzo.runtime import Runtime
from terrazzo.serve.engine import Engine
from terrazzo.serve.inputs import Tokenized, Truncate, Usage, encode_inputs, refuse_long, tokenize, usage_of
from terrazzo.serve.loaded import Loaded
from terrazzo.tasks import BadRow, Encoded, Example, Result, Task
from terrazzo.tasks.forward import Forward, Pooling, Prediction, embed, predictions
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.predict import as_example
from terrazzo.tasks.regression import RegressionTask

T = TypeVar("T")
#: Characters that are tokenized where they are; more go to a thread.
_TINY = 2000
#: Guesses of one request: masks, times candidates for each.
MAX_GUESSES = 100_000

#: One forward for each way of pooling, so that requests of all models on an encoder share its batches.
embedding: Callable[[Pooling, bool], Forward] = functools.cache(embed)


class CannotDo(InputError):
    """The model has no head for what was asked."""


class TooManyGuesses(InputError):
    """More candidates for more masks than one request may ask for."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_len`: tokens of a document; `batch_tokens`: tokens of a batch; `queue_tokens`: tokens that may wait."""

    max_len: int
    batch_tokens: int
    queue_tokens: int


class Served:
    """A model by its name. What it has loaded may be replaced under it: requests under way end on the old one.

    Args:
        name: what requests call it; folder: as it was given.
    """

    def __init__(self, name: str, folder: Path, loaded: Loaded) -> None:
        self.name, self.folder, self._loaded = name, folder, loaded

    @property
    def loaded(self) -> Loaded:
        """What the folder holds, as of the last load."""
        return self._loaded

    @property
    def abilities(self) -> tuple[str, ...]:
        """ "embed", "rerank", the kind of the task, "fill_mask": as far as the model has them."""
        return self._loaded.abilities

    @property
    def task(self) -> Task | None:
        """What the model was fine-tuned for."""
        return None if self._loaded.head is None else self._loaded.head.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes or tags of the task; of several problems "problem/class"; () without."""
        return self._loaded.labels

    @property
    def problems(self) -> tuple[str, ...]:
        """Names of the problems, where the model solves several."""
        return self._loaded.problems

    @property
    def limits(self) -> Limits:
        engine = self._loaded.engine
        return Limits(
            max_len=self._loaded.max_len,
            batch_tokens=engine.max_batch_tokens,
            queue_tokens=engine.max_queue_tokens,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture and tokenizer."""
        return self._loaded.fingerprint

    @property
    def loaded_at(self) -> float:
        """When the folder was loaded, in seconds since 1970."""
        return self._loaded.at

    @property
    def runtime(self) -> Runtime:
        return self._loaded.engine.runtime

    @property
    def engine(self) -> Engine:
        return self._loaded.engine

    def replace(self, loaded: Loaded) -> Loaded:
        """Answer from `loaded` from now on; what was answered from until now."""
        old, self._loaded = self._loaded, loaded
        return old

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        truncate: Truncate = True,
        pooling: Pooling = "mean",
        normalize: bool = True,
    ) -> tuple[np.ndarray, Usage]:
        """One vector an input, float32 `(N, D)`, of texts or of token ids of the model's own tokenizer.

        Raises:
            TooLong, InputError, QueueFull, Draining.
        """
        with self._using() as loaded:
            rows = await self._inputs(loaded, inputs, truncate)
            vectors = await loaded.engine.submit(embedding(pooling, normalize), [document for (document,) in rows])
            stacked = np.stack(vectors) if vectors else np.zeros((0, loaded.config.width), dtype=np.float32)
            return stacked, usage_of(rows)

    async def predict(self, rows: Sequence[Any], *, truncate: Truncate = True) -> tuple[list[Result], Usage]:
        """What the task says about each row: a text, a pair, or a mapping with the fields of a row.

        A row that cannot be used gives a result with `error`.

        Raises:
            CannotDo: the model has no task. TooLong, QueueFull, Draining.
        """
        with self._using() as loaded:
            head = loaded.head
            if head is None:
                raise CannotDo(f"model {self.name!r} has no head of a task: it can {_listed(self.abilities)}")
            size = _size(rows)
            examples, encoded = await _beside(size, _encoded, rows, head.task, loaded.tokenizer, head.max_len)
            documents = [row if isinstance(row, list) else [] for row in encoded]
            refuse_long(documents, truncate, head.max_len)
            outputs = await loaded.engine.submit(head.answer, [document for row in documents for document in row])
            return await _beside(size, _decoded, head.task, examples, encoded, outputs), usage_of(documents)

    async def rerank(
        self, query: str, documents: Sequence[str], *, truncate: Truncate = True
    ) -> tuple[np.ndarray, Usage]:
        """How well each document answers the query, float64 `(N,)`, the higher the better.

        A model for pairs says it: the probability of the class `positive` of its task, or else of the last one, or the
        value of a regression. With any other model it is the cosine of the embeddings.

        Raises:
            InputError: the query or a document is empty. TooLong, QueueFull, Draining.
        """
        score = None if self.task is None else relevance(self.task)
        if score is None:
            vectors, usage = await self.embed([query, *documents], truncate=truncate)
            return (vectors[1:].astype(np.float64) @ vectors[0]), usage
        results, usage = await self.predict([(query, document) for document in documents], truncate=truncate)
        for index, result in enumerate(results):
            if result.error is not None:
                raise InputError(f"document {index}: {result.error}")
        return np.array([score(result) for result in results], dtype=np.float64), usage

    async def fill_mask(
        self, texts: Sequence[str], *, top_k: int = 5, truncate: Truncate = True
    ) -> tuple[list[list[list[Prediction]]], Usage]:
        """The `top_k` likeliest tokens for every mask token of every text: texts x masks x candidates.

        Raises:
            CannotDo: the model has no masked-language-model head. InputError: a text without a mask.
                TooManyGuesses: masks times `top_k`. TooLong, QueueFull, Draining.
        """
        with self._using() as loaded:
            if loaded.fill is None:
                raise CannotDo(
                    f"model {self.name!r} has no masked-language-model head: it can {_listed(self.abilities)}"
                )
            rows = await self._inputs(loaded, texts, truncate)
            masked = [_masked(document, index, loaded) for index, (document,) in enumerate(rows)]
            top_k = min(top_k, loaded.config.vocab_size)
            count = _checked_guesses(masked, top_k)
            guesses = await loaded.engine.submit(loaded.fill(top_k), masked)
            return await _beside(count, predictions, guesses, loaded.tokenizer), usage_of(rows)

    async def tokenize(self, texts: Sequence[str], *, special: bool = True) -> list[Tokenized]:
        """The tokens of each text, uncut, with or without special tokens around them."""
        with self._using() as loaded:
            return await _beside(_size(texts), tokenize, loaded.tokenizer, texts, special)

    @contextmanager
    def _using(self) -> Iterator[Loaded]:
        loaded = self._loaded
        with loaded.in_use():
            yield loaded

    async def _inputs(self, loaded: Loaded, inputs: Sequence[Any], truncate: Truncate) -> list[list[Encoded]]:
        arguments = loaded.tokenizer, inputs, loaded.config.max_len, loaded.config.vocab_size
        rows = [[document] for document in await _beside(_size(inputs), encode_inputs, *arguments)]
        refuse_long(rows, truncate, loaded.config.max_len)
        return rows


def relevance(task: Task) -> Callable[[Result], float] | None:
    """How relevant a pair is by its result, for tasks that read a query and a document; None for the others."""
    if isinstance(task, LabelTask) and task.kind == "pair":
        relevant = task.classes[-1] if task.positive is None else task.positive
        return lambda result: (result.probabilities or {})[relevant]
    if isinstance(task, RegressionTask) and task.pair:
        return lambda result: float(result.score or 0.0)
    return None


async def _beside(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function here if it is quickly done, else on a thread beside the event loop."""
    if size <= _TINY:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _size(rows: Sequence[Any]) -> int:
    """About how many characters there are, without looking far into what may be anything."""
    total = 0
    for row in rows:
        parts = row.values() if isinstance(row, dict) else row if isinstance(row, (list, tuple)) else (row,)
        total += 1 + sum(len(part) if isinstance(part, (str, list)) else 1 for part in parts)
        if total > _TINY:
            break
    return total


def _encoded(
    rows: Sequence[Any], task: Task, tokenizer: Tokenizer, max_len: int
) -> tuple[list[Example | BadRow], list[list[Encoded] | BadRow]]:
    """The rows as the task understands them, and the documents of each."""
    examples = [as_example(row, "", task.kind, {}) for row in rows]
    good = iter(task.encode_many([one for one in examples if isinstance(one, Example)], tokenizer, max_len))
    return examples, [next(good) if isinstance(one, Example) else one for one in examples]


def _decoded(
    task: Task,
    examples: Sequence[Example | BadRow],
    encoded: Sequence[list[Encoded] | BadRow],
    outputs: Sequence[Any],
) -> list[Result]:
    remaining, results = iter(outputs), []
    for example, given in zip(examples, encoded, strict=True):
        if isinstance(given, BadRow):
            results.append(Result(error=given.message))
        else:
            assert isinstance(example, Example)
            results.append(task.decode(example, given, [next(remaining) for _ in given]))
    return results


def _masked(document: Encoded, index: int, loaded: Loaded) -> Encoded:
    positions = np.flatnonzero(document.ids == loaded.mask_id)
    if not len(positions):
        name = loaded.tokenizer.id_to_token(loaded.mask_id)
        raise InputError(f"text {index} has no {name} in its first {len(document.ids)} tokens: write it where to guess")
    return Encoded(ids=document.ids, token_types=document.token_types, positions=positions)


def _checked_guesses(masked: Sequence[Encoded], top_k: int) -> int:
    """How many guesses are asked for."""
    masks = sum(len(document.positions) for document in masked if document.positions is not None)
    if masks * top_k > MAX_GUESSES:
        raise TooManyGuesses(
            f"{masks:,} masks with {top_k:,} guesses each: a request may ask for {MAX_GUESSES:,} guesses in all; "
            "ask for fewer with top_k, or send several requests"
        )
    return masks * top_k


def _listed(abilities: Sequence[str]) -> str:
    return ", ".join(ability.replace("_", " ") for ability in abilities)
