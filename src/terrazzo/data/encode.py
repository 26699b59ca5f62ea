"""Last stage of `prepare`: split the cleaned chunks by document and turn each into a shard of token ids."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from terrazzo.data.chunks import Chunk
from terrazzo.data.corpus import SPLITS, SpecialTokens
from terrazzo.data.options import Progress
from terrazzo.data.shards import ShardWriter, token_dtype
from terrazzo.data.tokenizer import encode_batch, id_space
from terrazzo.provenance import write_json_atomic

HELDOUT_SHARE = 0.005
HELDOUT_MIN, HELDOUT_MAX, HELDOUT_MAX_SHARE = 200, 2000, 0.10
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 2048, 2 << 20


def heldout_count(num_documents: int, share: float | None) -> int:
    """Documents to hold out: `share` of them, or by default 0.5 %, at least 200, at most 2000, never over 10 %."""
    if share is not None:
        return max(1, round(share * num_documents))
    wanted = min(max(round(HELDOUT_SHARE * num_documents), HELDOUT_MIN), HELDOUT_MAX)
    return max(1, min(wanted, int(HELDOUT_MAX_SHARE * num_documents)))


def heldout_limit(chunks: Sequence[Chunk], share: float | None) -> int:
    """The largest key (first 8 bytes of the digest) that is held out.

    Which documents they are depends on the set of documents alone, not on their order or their files.
    """
    keys = np.concatenate([document_keys(chunk) for chunk in chunks])
    count = heldout_count(len(keys), share)
    return int(np.partition(keys, count - 1)[count - 1])


def document_keys(chunk: Chunk) -> np.ndarray:
    """uint64 key of each document of a chunk."""
    return np.frombuffer(chunk.array("digests").tobytes(), dtype=">u8")[::2].astype(np.uint64)


def train_texts(chunks: Sequence[Chunk], limit: int, max_bytes: int) -> Iterator[str]:
    """Documents that are not held out, in equal strides such that they make about `max_bytes` of text."""
    share = min(1.0, max_bytes / max(1, sum(chunk.tally.bytes for chunk in chunks)))
    index = 0
    for chunk in chunks:
        for text, key in zip(chunk.texts(), document_keys(chunk), strict=True):
            if key > limit:
                index += 1
                if int(index * share) > int((index - 1) * share):
                    yield text


@dataclass(frozen=True)
class Encoder:
    """Turns chunk after chunk into shards `train-00000` and `heldout-00000`; finished ones are not made again."""

    tokenizer: Tokenizer
    limit: int
    out: Path
    work: Path
    progress: Progress

    def run(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """What was counted for each chunk: `{"shards": {"train": {...}, ...}, "unknown": n, "seconds": s}`."""
        total, done = sum(chunk.tally.bytes for chunk in chunks), 0
        counts = []
        for chunk in chunks:
            marker = self.work / f"tokens-{chunk.index:05d}.json"
            if not marker.is_file():
                write_json_atomic(marker, self._encode(chunk, done, total))
            counts.append(json.loads(marker.read_text(encoding="utf-8")))
            done += chunk.tally.bytes
        return counts

    def _encode(self, chunk: Chunk, done: int, total: int) -> dict[str, Any]:
        started, unknown = time.monotonic(), 0
        unk = SpecialTokens.of(self.tokenizer).unk
        dtype = token_dtype(id_space(self.tokenizer))
        writers = {split: ShardWriter(self.out, f"{split}-{chunk.index:05d}", dtype) for split in SPLITS}
        heldout = iter(document_keys(chunk) <= self.limit)
        for texts in _batches(chunk.texts()):
            documents = encode_batch(self.tokenizer, texts)
            unknown += sum(ids.count(unk) for ids in documents)
            sides = list(islice(heldout, len(texts)))
            for split, writer in writers.items():
                writer.add([ids for ids, side in zip(documents, sides, strict=True) if side == (split == "heldout")])
            done += sum(len(text.encode()) for text in texts)
            self.progress("tokens", min(done, total), total, f"shard {chunk.index + 1}")
        counts: dict[str, Any] = {split: writer.close() for split, writer in writers.items() if writer.num_documents}
        return {"shards": counts, "unknown": unknown, "seconds": time.monotonic() - started}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
