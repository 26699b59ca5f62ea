"""First stage of `prepare`: read, clean and deduplicate every source into text chunks that survive a kill."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from terrazzo.data.chunks import EXAMPLE_LENGTH, Chunk, Tally, finished_chunks
from terrazzo.data.cleaning import clean, preset
from terrazzo.data.dedup import DIGEST, DigestSet, NearDuplicates, digest, signature
from terrazzo.data.files import atomic_file
from terrazzo.data.filters import Filter
from terrazzo.data.language import language_filter
from terrazzo.data.options import PrepareConfig, Progress
from terrazzo.data.readers import batches
from terrazzo.data.sources import Source
from terrazzo.data.tokenizer import encodable
from terrazzo.provenance import write_json_atomic

EXACT, NEAR = "exact duplicate", "near duplicate"
_INLINE_BATCHES = 64
A = TypeVar("A")
B = TypeVar("B")


class Cleaned(NamedTuple):
    """A document after cleaning; one that a filter dropped has a `reason` and the beginning of what it was."""

    text: str
    reason: str
    characters: int
    words: int
    digest: bytes
    signature: np.ndarray | None


class Gatherer:
    """Runs the stage; a second run on the same folder goes on after the last finished chunk."""

    def __init__(self, sources: Sequence[Source], options: PrepareConfig, folder: Path, progress: Progress) -> None:
        self.sources, self.options, self.folder, self.progress = sources, options, folder, progress
        self._seen = DigestSet()
        self._near = NearDuplicates(options.near_duplicates) if options.near_duplicates else None
        self._total = Tally()
        known = all(source.kind != "hub" for source in sources)
        self._total_bytes = sum(source.size for source in sources) if known else None

    def run(self) -> list[Chunk]:
        """All chunks, the missing ones made first."""
        chunks = finished_chunks(self.folder)
        for chunk in chunks:
            self._recall(chunk)
        at = chunks[-1].marker if chunks else {"source": 0, "skip": 0, "done": False}
        if at["done"]:
            return chunks
        cleaned = self._cleaned(at["source"], at["skip"])
        done = False
        while not done:
            chunk = Chunk(self.folder, len(chunks))
            done = self._write(chunk, at, cleaned)
            at = chunk.marker
            chunks.append(chunk)
        return chunks

    def _recall(self, chunk: Chunk) -> None:
        self._seen.add(chunk.array("digests"))
        if self._near:
            self._near.remember(chunk.array("minhash"))
        self._total.add(chunk.tally)

    def _cleaned(self, first: int, skip: int) -> Iterator[tuple[dict[str, int], list[Cleaned]]]:
        """Batches of cleaned documents, each with the place where reading goes on after it."""
        options = self.options
        work = partial(
            _clean_batch,
            preset_name=options.preset,
            language=options.language,
            with_signatures=self._near is not None,
        )
        return ordered_map(work, self._read(first, skip), options.workers)

    def _read(self, first: int, skip: int) -> Iterator[tuple[dict[str, int], list[str]]]:
        finished = sum(source.size for source in self.sources[:first])
        for index, source in enumerate(self.sources[first:], start=first):
            count = skip if index == first else 0
            for texts, position in batches(source, self.options.text_field, self.options.document, count):
                count += len(texts)
                yield {"source": index, "skip": count, "position": finished + position}, texts
            finished += source.size

    def _write(self, chunk: Chunk, at: dict[str, int], cleaned: Iterator[tuple[dict[str, int], list[Cleaned]]]) -> bool:
        """Write one chunk from the stream of batches; True when the stream has ended."""
        started, tally = time.monotonic(), Tally()
        kept: list[Cleaned] = []
        digests = [np.empty(0, DIGEST)]
        signatures: list[np.ndarray | None] = []
        done = True
        with atomic_file(chunk.text_file) as file:
            for at, documents in cleaned:
                kept = self._novel(documents, tally)
                digests.append(np.array([document.digest for document in kept], dtype=DIGEST))
                signatures.extend(document.signature for document in kept)
                lines = "".join(json.dumps(document.text, ensure_ascii=False) + "\n" for document in kept).encode()
                file.write(lines)
                tally.bytes += len(lines) - 3 * len(kept)
                tally.count_source(self.sources[at["source"]].name, len(documents), len(kept))
                self._report(at["position"], tally)
                if tally.bytes >= self.options.shard_bytes:
                    done = False
                    break
        tally.seconds = time.monotonic() - started
        chunk.save_array("digests", np.concatenate(digests))
        if self._near:
            chunk.save_array("minhash", np.array(signatures))
        marker = {"source": at["source"], "skip": at["skip"], "done": done, "tally": dataclasses.asdict(tally)}
        write_json_atomic(chunk.marker_file, marker)
        self._total.add(tally)
        return done

    def _novel(self, documents: list[Cleaned], tally: Tally) -> list[Cleaned]:
        """The documents that no filter dropped and that were not there before; the rest is counted."""
        tally.read += len(documents)
        tally.characters_read += sum(document.characters for document in documents)
        kept = [document for document in documents if not document.reason]
        for document in documents:
            if document.reason:
                tally.drop(document.reason, document.text, document.characters)
        kept = _keep(kept, self._seen.add(np.array([document.digest for document in kept], dtype=DIGEST)), EXACT, tally)
        if self._near:
            signatures = [document.signature for document in kept if document.signature is not None]
            kept = _keep(kept, self._near.add(signatures), NEAR, tally)
        tally.kept += len(kept)
        tally.words += sum(document.words for document in kept)
        tally.characters += sum(len(document.text) for document in kept)
        return kept

    def _report(self, position: int, tally: Tally) -> None:
        read, kept = self._total.read + tally.read, self._total.kept + tally.kept
        self.progress("clean", position, self._total_bytes, f"{kept:,} of {read:,} documents kept")


def ordered_map(function: Callable[[A], B], items: Iterable[tuple[Any, A]], workers: int) -> Iterator[tuple[Any, B]]:
    """`(key, function(value))` for each `(key, value)`, in order, with at most a few values waiting.

    The first values are worked on here, so that little work starts no processes.
    """
    items = iter(items)
    for key, value in items if workers == 1 else islice(items, _INLINE_BATCHES):
        yield key, function(value)
    if workers == 1 or (ahead := next(items, None)) is None:
        return
    # Forked children could inherit a lock that a thread of the tokenizer holds, so they are spawned.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[tuple[Any, Future[B]]] = deque([(ahead[0], pool.submit(function, ahead[1]))])
        for key, value in items:
            waiting.append((key, pool.submit(function, value)))
            if len(waiting) > 3 * workers:
                first_key, future = waiting.popleft()
                yield first_key, future.result()
        for key, future in waiting:
            yield key, future.result()


def _clean_batch(texts: list[str], preset_name: str, language: str | None, with_signatures: bool) -> list[Cleaned]:
    steps = _steps(preset_name, language)
    return [_clean_one(text, steps, with_signatures) for text in texts]


def _clean_one(original: str, steps: tuple[Filter, ...], with_signatures: bool) -> Cleaned:
    original = encodable(original)
    text, reason = clean(original, steps)
    if reason:
        return Cleaned(" ".join(original[: 2 * EXAMPLE_LENGTH].split()), reason, len(original), 0, b"", None)
    minhash = signature(text) if with_signatures else None
    return Cleaned(text, "", len(original), len(text.split()), digest(text), minhash)


@cache
def _steps(preset_name: str, language: str | None) -> tuple[Filter, ...]:
    extra = (language_filter(language),) if language else ()
    return (*preset(preset_name).filters, *extra)


def _keep(documents: list[Cleaned], mask: np.ndarray, reason: str, tally: Tally) -> list[Cleaned]:
    for document, keep in zip(documents, mask, strict=True):
        if not keep:
            tally.drop(reason, document.text, document.characters)
    return [document for document, keep in zip(documents, mask, strict=True) if keep]
