"""Predictions: rows of any kind in, one result a row out, in order, whatever single rows are like."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.tasks.batches import by_budget, collate
from terrazzo.tasks.forward import EncoderLike, answer
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.rows import example_of
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Task

#: A text, a pair of texts, a row of named fields, or what reading a file gave.
Row = str | tuple[str, str] | Mapping[str, Any] | Example | BadRow
#: Rows that are sorted by length and packed together; a long input never exists in tokenized form as a whole.
_ROWS_AT_A_TIME = 2048


class Predictor:
    """A task model that answers rows.

    Args:
        model: is put into inference mode.
        tokenizer: gives model-ready ids, special tokens included.
        max_len: tokens of a document, special ones included; what is longer is cut or read in windows, as the task has
            it.
        fields: column names of rows with named fields, by what they mean: {"text": "tweet"}.
        runtime: what runs the encoder; None is the model's own.
    """

    def __init__(
        self,
        model: TaskModel,
        tokenizer: Tokenizer,
        max_len: int,
        fields: Mapping[str, str] | None = None,
        runtime: EncoderLike | None = None,
    ) -> None:
        self.model, self.tokenizer, self.max_len = model.eval(), tokenizer, max_len
        self.runtime = runtime
        self.fields = dict(fields or {})

    @property
    def task(self) -> Task:
        return self.model.task

    def predict(self, rows: Iterable[Row], batch_tokens: int = 16_384) -> list[Result]:
        """One result a row, in the order of the rows; a row that cannot be used gives one with `error`.

        Documents are sorted by length and packed without padding; a result does not depend on the other rows.

        Args:
            batch_tokens: tokens that run at a time, or one document where it is longer.
        """
        return list(self.stream(rows, batch_tokens))

    def stream(self, rows: Iterable[Row], batch_tokens: int = 16_384) -> Iterator[Result]:
        """The results of `predict` as they come, a few thousand rows read ahead."""
        numbered = enumerate(rows)
        while chunk := list(itertools.islice(numbered, _ROWS_AT_A_TIME)):
            examples = [as_example(row, f"row {number}", self.task.kind, self.fields) for number, row in chunk]
            yield from self._answer(examples, batch_tokens)

    def _answer(self, rows: Sequence[Example | BadRow], batch_tokens: int) -> list[Result]:
        encoded = self._encode(rows)
        flat = [document for given in encoded if isinstance(given, list) for document in given]
        outputs = iter(self._run(flat, batch_tokens))
        results = []
        for row, given in zip(rows, encoded, strict=True):
            if isinstance(given, BadRow):
                results.append(Result(error=f"{given.where}: {given.message}" if given.where else given.message))
            else:
                assert isinstance(row, Example)
                results.append(self.task.decode(row, given, [next(outputs) for _ in given]))
        return results

    def _encode(self, rows: Sequence[Example | BadRow]) -> list[list[Encoded] | BadRow]:
        """The documents of every row, without answers, which may be of classes that the model does not know."""
        asked = [dataclasses.replace(row, target=None) for row in rows if isinstance(row, Example)]
        encoded = iter(self.task.encode_many(asked, self.tokenizer, self.max_len))
        return [next(encoded) if isinstance(row, Example) else row for row in rows]

    @torch.inference_mode()
    def _run(self, documents: Sequence[Encoded], batch_tokens: int) -> list[np.ndarray]:
        encoder, device = self.runtime or self.model.encoder, next(self.model.head.parameters()).device
        forward = answer(self.model)
        outputs: dict[int, np.ndarray] = {}
        for chosen in by_budget([len(document.ids) for document in documents], batch_tokens):
            batch = collate([documents[index] for index in chosen]).to(device)
            outputs.update(zip(chosen.tolist(), forward(encoder, batch), strict=True))
        return [outputs[index] for index in range(len(documents))]


def as_example(row: Row | Any, where: str, kind: str, fields: Mapping[str, str]) -> Example | BadRow:
    """The example that a row of any kind is, or a `BadRow` saying why it is none; answers in it are left out."""
    if isinstance(row, (Example, BadRow)):
        return row
    try:
        return example_of(row, kind, where=where, fields=fields, labelled=False)
    except InputError as error:
        return BadRow(where=where, message=str(error))


def result_dict(result: Result) -> dict[str, Any]:
    """A result for JSON: the fields that say something, numbers to six digits."""
    values = {name: value for name, value in vars(result).items() if value is not None}
    if not result.truncated:
        del values["truncated"]
    return {name: _rounded(to_dict(value)) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
