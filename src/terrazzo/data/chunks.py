"""Cleaned text in chunks on disk, each whole or absent, and what was counted while making them.

clean-00000.jsonl         the kept documents, one JSON string a line, about `shard_bytes` of UTF-8
clean-00000.digests.npy   their digests
clean-00000.minhash.npy   their signatures, if near duplicates are looked for
clean-00000.json          written last: where reading goes on, the chunk's `Tally`
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.data.files import atomic_file

EXAMPLE_LENGTH = 100
_EXAMPLES = 2


@dataclass
class Tally:
    """Counts of one chunk; `dropped` maps a reason to documents, characters and examples."""

    read: int = 0
    kept: int = 0
    characters_read: int = 0
    characters: int = 0
    words: int = 0
    bytes: int = 0
    seconds: float = 0.0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, reason: str, text: str, characters: int) -> None:
        """Count a dropped document and keep the first few as examples."""
        self._drop(reason, 1, characters, [text[:EXAMPLE_LENGTH]])

    def count_source(self, name: str, read: int, kept: int) -> None:
        """Add to the documents read and kept of one source."""
        before = self.sources.get(name, [0, 0])
        self.sources[name] = [before[0] + read, before[1] + kept]

    def add(self, other: Tally) -> None:
        """Add the counts of a later chunk."""
        for name in ("read", "kept", "characters_read", "characters", "words", "bytes", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, counts in other.dropped.items():
            self._drop(reason, counts["documents"], counts["characters"], counts["examples"])
        for name, (read, kept) in other.sources.items():
            self.count_source(name, read, kept)

    def _drop(self, reason: str, documents: int, characters: int, examples: list[str]) -> None:
        counts = self.dropped.setdefault(reason, {"documents": 0, "characters": 0, "examples": []})
        counts["documents"] += documents
        counts["characters"] += characters
        counts["examples"] = [*counts["examples"], *examples][:_EXAMPLES]


@dataclass(frozen=True)
class Chunk:
    """A finished chunk: its files and what its marker says."""

    folder: Path
    index: int

    @property
    def text_file(self) -> Path:
        return self.folder / f"clean-{self.index:05d}.jsonl"

    @property
    def marker_file(self) -> Path:
        return self.folder / f"clean-{self.index:05d}.json"

    @property
    def marker(self) -> dict[str, Any]:
        return dict(json.loads(self.marker_file.read_text(encoding="utf-8")))

    @property
    def tally(self) -> Tally:
        return Tally(**self.marker["tally"])

    def array(self, name: str) -> np.ndarray:
        """The digests or MinHash signatures of the chunk's documents."""
        return np.load(self._array_file(name), allow_pickle=False)

    def save_array(self, name: str, values: np.ndarray) -> None:
        with atomic_file(self._array_file(name)) as file:
            np.save(file, values)

    def texts(self) -> Iterator[str]:
        """The documents of the chunk."""
        with open(self.text_file, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def _array_file(self, name: str) -> Path:
        return self.folder / f"clean-{self.index:05d}.{name}.npy"


def finished_chunks(folder: Path) -> list[Chunk]:
    """The chunks that are whole, in order."""
    chunks: list[Chunk] = []
    while (chunk := Chunk(folder, len(chunks))).marker_file.is_file():
        chunks.append(chunk)
    return chunks
