"""Labelled rows in memory, tokenized once, and the steps over them.

Shapes: B documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from terrazzo.config import to_dict
from terrazzo.data import StepPlan, shuffled
from terrazzo.errors import InputError
from terrazzo.packed import Packed
from terrazzo.tasks.batches import collate
from terrazzo.tasks.task import BadRow, Encoded, Example, Task


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows with the documents that they become, tokenized once."""

    examples: Sequence[Example]
    documents: Sequence[Sequence[Encoded]]

    @classmethod
    def encode(cls, task: Task, examples: Sequence[Example], tokenizer: Tokenizer, max_len: int) -> LabelledRows:
        """Tokenize rows, all of which the task can use.

        Raises:
            InputError: a row cannot be used; the first is named, and how many there are.
        """
        encoded = task.encode_many(examples, tokenizer, max_len)
        bad = [given for given in encoded if isinstance(given, BadRow)]
        if bad:
            more = f" ({len(bad)} such rows; mend them or leave them out)" if len(bad) > 1 else ""
            raise InputError(f"{bad[0].where}: {bad[0].message}{more}".removeprefix(": "))
        return cls.usable(examples, encoded)

    @classmethod
    def usable(cls, examples: Sequence[Example], encoded: Sequence[list[Encoded] | BadRow]) -> LabelledRows:
        """The rows that the task can use, of those that `encode_many` gave."""
        pairs = [(row, given) for row, given in zip(examples, encoded, strict=True) if not isinstance(given, BadRow)]
        return cls(examples=[row for row, _ in pairs], documents=[given for _, given in pairs])

    @classmethod
    def scoring(
        cls,
        task: Task,
        examples: Sequence[Example],
        encoded: Sequence[list[Encoded] | BadRow],
        tokenizer: Tokenizer,
        max_len: int,
    ) -> LabelledRows:
        """All rows: with an answer that the task does not know as documents without one, with no text as none."""
        documents = list(encoded)
        unknown = [i for i, given in enumerate(documents) if isinstance(given, BadRow)]
        asked = [dataclasses.replace(examples[i], target=None) for i in unknown]
        for i, given in zip(unknown, task.encode_many(asked, tokenizer, max_len), strict=True):
            documents[i] = [] if isinstance(given, BadRow) else given
        return cls(examples=examples, documents=[given for given in documents if not isinstance(given, BadRow)])

    @cached_property
    def flat(self) -> list[Encoded]:
        """The documents of all rows, end to end."""
        return [document for documents in self.documents for document in documents]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the model reads and of the answers."""
        digest = hashlib.sha256()
        for example, documents in zip(self.examples, self.documents, strict=True):
            for document in documents:
                label = None if document.label is None else document.label.tolist()
                positions = None if document.positions is None else document.positions.tolist()
                digest.update(np.ascontiguousarray(document.ids, dtype="<i8").tobytes())
                digest.update(repr((len(document.ids), label, positions, document.problem)).encode())
            digest.update(json.dumps(to_dict(example.target)).encode())
        return digest.hexdigest()[:16]


class RowStream:
    """Steps over labelled documents: a keyed shuffle that is another each epoch, the last step of one going over into
    the next.

    Args:
        documents: what is learned from.
        batch_size: documents of one step over all ranks; all of them where there are fewer.
        seed: of the order.
    """

    def __init__(self, documents: Sequence[Encoded], batch_size: int, seed: int) -> None:
        self.documents, self.seed = documents, seed
        self.pieces_per_step = min(batch_size, len(documents))
        self.lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.lengths.max())

    def step(self, t: int) -> StepPlan:
        """The documents of step `t`, from 0; the same cost for every `t`."""
        rows, epochs = shuffled(t, self.pieces_per_step, len(self.documents), self.seed)
        return StepPlan(pieces=rows, epochs=epochs, lengths=self.lengths[rows])

    def pack(self, pieces_B: np.ndarray, epoch_B: np.ndarray) -> Packed:
        """These documents with their labels as one batch, in the given order."""
        return collate([self.documents[row] for row in pieces_B])
