"""Texts and token ids of a request as documents, with what was cut of them.

Shapes: L tokens of one document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from terrazzo.data import encodable
from terrazzo.errors import InputError
from terrazzo.tasks.task import Encoded
from terrazzo.tasks.texts import Frame, encode_texts, frame

#: True cuts what is too long; False and "error" refuse it with `TooLong`.
Truncate = bool | Literal["error"]


class TooLong(InputError):
    """An input has more tokens than the model reads.

    Args:
        index: of the input; tokens: that it has, special ones included; limit: that the model reads.
    """

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"input {index} has {tokens:,} tokens, the model reads {limit:,}: shorten it, or send truncate: true"
        )
        self.index, self.tokens, self.limit = index, tokens, limit


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of each input, special ones included: those that were read, and those that were cut."""

    tokens: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Token ids of a text, the tokens themselves, and their first and last-plus-one character."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


def encode_inputs(
    tokenizer: Tokenizer, inputs: Sequence[str | Sequence[int]], max_len: int, vocab_size: int
) -> list[Encoded]:
    """Texts and lists of token ids as documents of at most `max_len` tokens, in their order.

    Ids are those of the model's own tokenizer, with the special tokens around them or without.

    Raises:
        InputError: an input is neither, or has an id that the model does not know.
    """
    texts = [item for item in inputs if isinstance(item, str)]
    cut = iter(encode_texts(tokenizer, texts, [None] * len(texts), max_len))
    around = frame(tokenizer, pair=False) if len(texts) < len(inputs) else None
    documents = []
    for index, item in enumerate(inputs):
        if isinstance(item, str):
            text = next(cut)
            documents.append(Encoded(ids=text.ids, token_types=text.token_types, truncated=text.truncated))
        else:
            assert around is not None
            ids = _checked_ids(item, index, vocab_size)
            documents.append(_framed(ids, around, max_len))
    return documents


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[Tokenized]:
    """The tokens of each text, uncut; `special` ones around them have the characters (0, 0)."""
    encodings = tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=special)
    return [Tokenized(ids=one.ids, tokens=one.tokens, offsets=one.offsets) for one in encodings]


def usage_of(rows: Iterable[Sequence[Encoded]]) -> Usage:
    """Tokens of inputs that became these documents."""
    rows = list(rows)
    return Usage(
        tokens=tuple(sum(len(document.ids) for document in row) for row in rows),
        truncated=tuple(row[0].truncated if row else 0 for row in rows),
    )


def refuse_long(rows: Iterable[Sequence[Encoded]], truncate: Truncate, limit: int) -> None:
    """Raise TooLong for the first input of which something was cut, unless `truncate` allows it."""
    if truncate is True:
        return
    for index, row in enumerate(rows):
        if row and row[0].truncated:
            raise TooLong(index, sum(len(document.ids) for document in row) + row[0].truncated, limit)


def _checked_ids(item: Any, index: int, vocab_size: int) -> list[int]:
    ids = list(item)
    if not ids:
        raise InputError(f"input {index} is an empty list of token ids")
    for place, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise InputError(
                f"input {index}, token {place}: {token!r:.40} is no token id of this model (0 to {vocab_size - 1}); "
                "ids of other tokenizers mean nothing here: send the text"
            )
    return ids


def _framed(ids: list[int], around: Frame, max_len: int) -> Encoded:
    first, last = len(around.before), len(around.after)
    if len(ids) >= first + last and (tuple(ids[:first]), tuple(ids[len(ids) - last :])) == (
        around.before,
        around.after,
    ):
        ids = ids[first : len(ids) - last]
    keep = max_len - around.num_special
    joined, types = around.join(ids[:keep])
    return Encoded(ids=np.asarray(joined), token_types=types, truncated=max(0, len(ids) - keep))
