"""Texts and pairs of texts as token ids with special tokens, cut to a length, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from terrazzo.checkpoint.tokenizer import special_ids
from terrazzo.data.tokenizer import encodable
from terrazzo.errors import InputError
from terrazzo.tasks.task import BadRow, Encoded, Example

_AT_A_TIME = 4096


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one text or a pair, and the segments of all five parts.

    Args:
        before, between, after: their ids; `between` is empty for one text.
        types: segment of each of before, first text, between, second text, after.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...]

    @property
    def num_special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Sequence[int], second: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray | None]:
        """Token ids and segments of a document, int64; segments are None where all are 0."""
        ids = np.array([*self.before, *first, *self.between, *second, *self.after], dtype=np.int64)
        if not any(self.types):
            return ids, None
        sizes = (len(self.before), len(first), len(self.between), len(second), len(self.after))
        return ids, np.repeat(np.array(self.types, dtype=np.int64), sizes)


def frame(tokenizer: Tokenizer, pair: bool) -> Frame:
    """What the tokenizer's own post-processor puts around a text or a pair: RoBERTa's `<s> a </s></s> b </s>`, BERT's
    `[CLS] a [SEP] b [SEP]` with segments 0 and 1.

    A tokenizer whose post-processor adds nothing gets BERT's from its CLS and SEP tokens.

    Raises:
        InputError: it adds nothing and has no such tokens.
    """
    uncut(tokenizer)
    probe = tokenizer.encode("a", "a") if pair else tokenizer.encode("a")
    owner = np.array([-1 if i is None else i for i in probe.sequence_ids])
    ids, types = np.array(probe.ids), np.array(probe.type_ids)
    first = np.flatnonzero(owner == 0)
    second = np.flatnonzero(owner == 1) if pair else first[-1:]
    if not len(first) or not len(second):  # a vocabulary without "a" and without an unknown token
        return _bert_frame(tokenizer, pair)
    before, between, after = slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None)
    if not len(ids[before]) or not len(ids[after]) or (pair and not len(ids[between])):
        return _bert_frame(tokenizer, pair)
    parts = (before, first[:1], between, second[:1], after)
    kinds = [int(types[part][0]) if len(types[part]) else 0 for part in parts]
    texts = [tuple(ids[part].tolist()) for part in (before, between, after)]
    return Frame(texts[0], texts[1], texts[2], tuple(kinds))


def _bert_frame(tokenizer: Tokenizer, pair: bool) -> Frame:
    special = special_ids(tokenizer)
    if not {"cls", "sep"} <= special.keys():
        raise InputError(
            "the tokenizer puts no special tokens around a text and has no CLS and SEP tokens to put there: give the "
            "model the tokenizer.json that it was trained with, or begin from another one"
        )
    end = (special["sep"],)
    return Frame((special["cls"],), end if pair else (), end, (0, 0, 0, 1, 1) if pair else (0, 0, 0, 0, 0))


def uncut(tokenizer: Tokenizer) -> None:
    """Switch off a tokenizer's own truncation and padding, which published ones may come with."""
    if tokenizer.truncation is not None:
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        tokenizer.no_padding()


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, uncut and without special tokens around it; halves of surrogate pairs become U+FFFD."""
    uncut(tokenizer)
    clean = [encodable(text) for text in texts]
    ids: list[list[int]] = []
    for start in range(0, len(clean), _AT_A_TIME):
        part = tokenizer.encode_batch_fast(clean[start : start + _AT_A_TIME], add_special_tokens=False)
        ids += [encoding.ids for encoding in part]
    return ids


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit into `room` when tokens are dropped from whichever is longer."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


@dataclass(frozen=True)
class CutText:
    """A text or pair as a model reads it, and how many of its tokens were cut; `empty` where a text has no token."""

    ids: np.ndarray
    token_types: np.ndarray | None
    truncated: int
    empty: bool


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], others: Sequence[str | None], max_len: int
) -> list[CutText]:
    """Every text, or pair where `others` has a second one, in at most `max_len` tokens, special ones included.

    Raises:
        InputError: `max_len` leaves no room for text.
    """
    has_pairs = any(other is not None for other in others)
    frames = {pair: frame(tokenizer, pair) for pair in (False, True) if has_pairs or not pair}
    room = {pair: max_len - frames[pair].num_special for pair in frames}
    if min(room.values()) < 1 + has_pairs:
        raise InputError(f"max_len={max_len}: special tokens alone take {max_len - min(room.values())}; raise it")
    seconds = iter(token_ids(tokenizer, [other for other in others if other is not None]))
    result = []
    for first, other in zip(token_ids(tokenizer, texts), others, strict=True):
        pair = other is not None
        second = next(seconds) if pair else []
        keep, keep_second = longest_first(len(first), len(second), room[pair])
        ids, types = frames[pair].join(first[:keep], second[:keep_second])
        cut = len(first) - keep + len(second) - keep_second
        result.append(CutText(ids, types, cut, empty=not first or (pair and not second)))
    return result


def encode_alone(tokenizer: Tokenizer, texts: Sequence[str], max_len: int) -> list[Encoded]:
    """Each text as a document of at most `max_len` tokens: what `encode`, the server and calibration give a model.

    It changes nothing in the tokenizer, so several threads may share one.

    Raises:
        InputError: `max_len` leaves no room for text.
    """
    cut = encode_texts(tokenizer, texts, [None] * len(texts), max_len)
    return [Encoded(ids=text.ids, token_types=text.token_types, truncated=text.truncated) for text in cut]


def encode_rows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_len: int,
    label: Callable[[Example], np.ndarray],
    pair: bool | None = None,
    problem: Callable[[Example], int | None] = lambda example: None,
) -> list[list[Encoded] | BadRow]:
    """One document a row, with its label where it has a target.

    Args:
        label: the answer as numbers; raises InputError where it cannot be used.
        pair: whether rows must have a second text; None takes either.
        problem: number of the row's problem; raises InputError for an unknown one.
    """
    texts = [example.text for example in examples]
    cut = encode_texts(tokenizer, texts, [example.other for example in examples], max_len)
    rows: list[list[Encoded] | BadRow] = []
    for example, text in zip(examples, cut, strict=True):
        try:
            _check_texts(example, text.empty, pair)
            number = problem(example)
            answer = None if example.target is None else label(example)
        except InputError as error:
            rows.append(BadRow(where=example.where, message=str(error)))
            continue
        row = Encoded(
            ids=text.ids, token_types=text.token_types, label=answer, problem=number, truncated=text.truncated
        )
        rows.append([row])
    return rows


def _check_texts(example: Example, empty: bool, pair: bool | None) -> None:
    if pair is True and example.other is None:
        raise InputError("one text where the task reads two: give a and b")
    if pair is False and example.other is not None:
        raise InputError("two texts where the task reads one: give text alone")
    if empty:
        raise InputError("a text is empty" if example.other is not None else "the text is empty")
