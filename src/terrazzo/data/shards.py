"""Token shards: the ids of many documents end to end in one memory-mapped file, and where each document starts.

NAME.tokens.npy    uint16 (uint32 for more than 65,536 tokens of vocabulary), no special tokens
NAME.offsets.npy   int64, documents + 1
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.data.files import atomic_file
from terrazzo.errors import InputError


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_files(name: str) -> tuple[str, str]:
    """File names of the tokens and the offsets of shard `name`."""
    return f"{name}.tokens.npy", f"{name}.offsets.npy"


class ShardWriter:
    """Collects the documents of one shard in memory and writes both files at `close`, offsets last."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self._blocks: list[np.ndarray] = []
        self._lengths: list[int] = []

    def add(self, documents: Sequence[Sequence[int]]) -> None:
        """Append documents given as token ids; empty ones are left out."""
        self._lengths.extend(len(ids) for ids in documents if len(ids))
        self._blocks.append(np.fromiter(itertools.chain.from_iterable(documents), dtype=self.dtype))

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def close(self) -> dict[str, Any]:
        """Write the shard; returns its `{"name", "documents", "tokens"}`."""
        tokens_T = np.concatenate(self._blocks) if self._blocks else np.empty(0, self.dtype)
        offsets = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        for file_name, array in zip(shard_files(self.name), (tokens_T, offsets), strict=True):
            with atomic_file(self.folder / file_name) as file:
                np.save(file, array)
        return {"name": self.name, "documents": len(self._lengths), "tokens": len(tokens_T)}


class Shard:
    """A shard opened read-only; nothing is read until it is used.

    Raises:
        InputError: the two files do not belong together or are cut short.
    """

    def __init__(self, folder: Path, name: str) -> None:
        tokens_file, offsets_file = shard_files(name)
        self.tokens_T = _map(folder / tokens_file)
        self.offsets = _map(folder / offsets_file)
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens_T):
            raise InputError(
                f"{folder / offsets_file}: the offsets do not fit {tokens_file} ({len(self.tokens_T)} tokens); "
                "the shard is damaged: delete the folder and run `terrazzo prepare` again"
            )

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """A read-only view of the token ids of document `index`."""
        return self.tokens_T[self.offsets.item(index) : self.offsets.item(index + 1)]


def _map(path: Path) -> np.ndarray:
    try:
        # A plain view: slicing a np.memmap costs several times as much.
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: the shard is damaged ({error}); delete the folder and run `terrazzo prepare` again"
        ) from None
