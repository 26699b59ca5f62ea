"""A person's texts as documents: most set the ranges of int8, the rest judge it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from terrazzo.errors import InputError
from terrazzo.packed import Packed
from terrazzo.runtime.quantise import LEAST_TEXTS
from terrazzo.tasks.batches import by_budget, collate
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Task
from terrazzo.tasks.texts import encode_alone

#: Rows that judge and rows that set the ranges, at most; and the tokens of the latter.
MOST_JUDGING, MOST_SETTING, MOST_TOKENS = 256, 300, 40_000
#: Padding is of no use in calibration and little in judging.
_JUDGE_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Texts of a file, shuffled and told apart.

    Args:
        setting: documents that set ranges; judging: other documents, that measure agreement.
        rows: the rows of `judging`, for a task's answers.
    """

    setting: list[Encoded]
    judging: list[Encoded]
    rows: list[Example]

    @property
    def set_batches(self) -> list[Packed]:
        """Each document alone, so that no padding is seen."""
        return [_tokens([document]) for document in self.setting]

    @property
    def judge_batches(self) -> list[Packed]:
        return batches_of(self.judging)


def read_calibration(
    file: str | Path,
    tokenizer: Tokenizer,
    max_len: int,
    task: Task | None = None,
    fields: Mapping[str, str] | None = None,
    least: int = LEAST_TEXTS,
) -> Calibration:
    """The rows of a file as the model reads them: texts for an encoder, a task's own rows for a task.

    Args:
        file: .jsonl with a field "text", .csv, .tsv, .parquet, or plain lines; a task's files as in prediction.
        max_len: tokens of a document.
        fields: the column of a field, where its name does not tell.
        least: rows needed.

    Raises:
        InputError: the file cannot be read, has bad rows, or fewer different rows than `least`.
    """
    examples = read_examples(file, "label" if task is None else task.kind, fields, labelled=False)
    return calibration_of(examples, tokenizer, max_len, task, least, str(file))


def calibration_of(
    rows: Sequence[Example],
    tokenizer: Tokenizer,
    max_len: int,
    task: Task | None = None,
    least: int = LEAST_TEXTS,
    source: str = "rows",
) -> Calibration:
    """The same of rows that are read already; `source` is what messages call them.

    Raises:
        InputError: fewer different usable rows than `least`.
    """
    examples = list(rows)
    random.Random(0).shuffle(examples)
    asked = [dataclasses.replace(row, target=None) for row in examples[: 4 * (MOST_JUDGING + MOST_SETTING)]]
    encoded: Sequence[list[Encoded] | BadRow]
    if task is None:
        encoded = [[document] for document in encode_alone(tokenizer, [row.text for row in asked], max_len)]
    else:
        encoded = task.encode_many(asked, tokenizer, max_len)
    different: dict[bytes, tuple[Example, list[Encoded]]] = {}
    for row, documents in zip(asked, encoded, strict=True):
        if not isinstance(documents, BadRow):
            different.setdefault(b"".join(document.ids.tobytes() for document in documents), (row, documents))
    if len(different) < least:
        raise InputError(f"{source}: has {len(different)} different rows; calibration needs at least {least}: add some")
    chosen = list(different.values())
    judging = chosen[: min(MOST_JUDGING, len(chosen) // 3)]
    setting = [document for _, documents in chosen[len(judging) :] for document in documents]
    return Calibration(
        setting=_within(setting),
        judging=[document for _, documents in judging for document in documents],
        rows=[row for row, _ in judging],
    )


def made_up(documents: Sequence[np.ndarray]) -> Calibration:
    """Documents of no meaning, where there are no texts and only fp32 or bf16 is judged."""
    return Calibration(setting=[], judging=[Encoded(ids=ids) for ids in documents], rows=[])


def batches_of(documents: Sequence[Encoded]) -> list[Packed]:
    """Documents of like lengths together, labels and selections left out."""
    lengths = [len(document.ids) for document in documents]
    return [_tokens([documents[index] for index in chosen]) for chosen in by_budget(lengths, _JUDGE_TOKENS)]


def alike(reference: Sequence[Result], found: Sequence[Result]) -> float:
    """The share of answers that are the same: classes, words' tags, spans' texts; values to a twentieth of their
    standard deviation.
    """
    spread = float(np.std([result.score for result in reference if result.score is not None] or [0.0]))
    return float(np.mean([_same(one, other, spread / 20) for one, other in zip(reference, found, strict=True)]))


def _same(one: Result, other: Result, tolerance: float) -> float:
    if one.tags is not None and other.tags is not None:
        return float(np.mean([a == b for a, b in zip(one.tags, other.tags, strict=True)] or [True]))
    if one.label is None and one.labels is None and one.score is not None and other.score is not None:
        return float(abs(one.score - other.score) <= tolerance)
    return float((one.label, one.labels, _texts_of(one)) == (other.label, other.labels, _texts_of(other)))


def _texts_of(result: Result) -> list[tuple[str, str]]:
    return [(span.label, span.text) for span in result.spans or ()]


def _tokens(documents: Sequence[Encoded]) -> Packed:
    return collate([Encoded(ids=document.ids, token_types=document.token_types) for document in documents])


def _within(documents: Sequence[Encoded]) -> list[Encoded]:
    """The first documents, as many as make up for what ranges need and what time there is."""
    ends = np.cumsum([len(document.ids) for document in documents])
    enough = max(1, int(np.searchsorted(ends, MOST_TOKENS, side="right")))
    return list(documents[: min(MOST_SETTING, enough)])
