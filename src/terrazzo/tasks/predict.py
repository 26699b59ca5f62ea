"""Predictions: rows of any kind in, one result a row out, in order, whatever single rows are like."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.runtime import Runtime, TorchRuntime
from terrazzo.tasks.forward import answer, run_chunks
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.rows import example_of
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Task

#: A text, a pair of texts, a row of named fields, or what reading a file gave.
Row = str | tuple[str, str] | Mapping[str, Any] | Example | BadRow
#: Rows that are sorted by length and packed together; a long input never exists in tokenized form as a whole.
_ROWS_AT_A_TIME = 2048
_Read = tuple[Sequence[Example | BadRow], Sequence[list[Encoded] | BadRow]]


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
        runtime: Runtime | None = None,
    ) -> None:
        self.model, self.tokenizer, self.max_len = model.eval(), tokenizer, max_len
        self.runtime: Runtime = TorchRuntime(model.encoder) if runtime is None else runtime
        self.fields = dict(fields or {})

    @property
    def task(self) -> Task:
        return self.model.task

    def predict(self, rows: Iterable[Row], batch_tokens: int | None = None) -> list[Result]:
        """One result a row, in the order of the rows; a row that cannot be used gives one with `error`.

        Documents are sorted by length and packed without padding; a result does not depend on the other rows.

        Args:
            batch_tokens: tokens that run at a time, or one document where it is longer; None takes the runtime's.
        """
        return list(self.stream(rows, batch_tokens))

    def stream(self, rows: Iterable[Row], batch_tokens: int | None = None) -> Iterator[Result]:
        """The results of `predict` as they come, a few thousand rows read ahead."""
        numbered, read = enumerate(rows), deque[_Read]()

        def chunks() -> Iterator[list[Encoded]]:
            while chunk := list(itertools.islice(numbered, _ROWS_AT_A_TIME)):
                examples = [as_example(row, f"row {number}", self.task.kind, self.fields) for number, row in chunk]
                read.append((examples, self._encode(examples)))
                yield [document for given in read[-1][1] if isinstance(given, list) for document in given]

        for outputs in run_chunks(self.runtime, chunks(), answer(self.model), batch_tokens):
            yield from self._decode(*read.popleft(), iter(outputs))

    def _decode(
        self, rows: Sequence[Example | BadRow], encoded: Sequence[list[Encoded] | BadRow], outputs: Iterator[Any]
    ) -> Iterator[Result]:
        for row, given in zip(rows, encoded, strict=True):
            if isinstance(given, BadRow):
                yield Result(error=f"{given.where}: {given.message}" if given.where else given.message)
            else:
                assert isinstance(row, Example)
                yield self.task.decode(row, given, [next(outputs) for _ in given])

    def _encode(self, rows: Sequence[Example | BadRow]) -> list[list[Encoded] | BadRow]:
        """The documents of every row, without answers, which may be of classes that the model does not know."""
        asked = [dataclasses.replace(row, target=None) for row in rows if isinstance(row, Example)]
        encoded = iter(self.task.encode_many(asked, self.tokenizer, self.max_len))
        return [next(encoded) if isinstance(row, Example) else row for row in rows]


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
