"""From raw text to a data folder: clean and deduplicate, train or take a tokenizer, write shards, then the manifest.

Every stage leaves finished work under OUT/.work, so that a run that was killed goes on where it stopped and ends with
the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from terrazzo.config import from_dict, to_dict
from terrazzo.data.chunks import Chunk, Tally, finished_chunks
from terrazzo.data.cleaning import preset
from terrazzo.data.corpus import MANIFEST, SPLITS, TOKENIZER, Corpus, manifest_of
from terrazzo.data.encode import Encoder, heldout_limit, train_texts
from terrazzo.data.gather import Gatherer
from terrazzo.data.language import language_filter
from terrazzo.data.options import PrepareConfig, Progress
from terrazzo.data.sources import Source, find_sources
from terrazzo.data.statistics import statistics
from terrazzo.data.tokenizer import default_vocab_size, load_tokenizer, train_tokenizer
from terrazzo.errors import InputError, RunError
from terrazzo.provenance import versions, write_json_atomic, write_text_atomic

WORK = ".work"
MIN_DOCUMENTS = 20
TOKENIZER_SAMPLE = 128 << 20
_CLEAN_OPTIONS = ("preset", "text_field", "document", "language", "near_duplicates", "shard_bytes")
_TOKEN_OPTIONS = ("vocab_size", "tokenizer", "tokenizer_kind", "lowercase", "heldout")
_PACKAGES = ("tokenizers", "numpy", "pyarrow", "datasketch", "py3langid", "datasets")


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    config: PrepareConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Corpus:
    """Make a data folder `out` from text files, folders and hub data sets; returns it opened.

    The same call on a folder that it did not finish goes on; on a finished one it returns at once.

    Args:
        config: the options; `options` are its fields by name and override it.
        progress: called with (stage, done, total or None, note) as the work goes on.

    Raises:
        InputError: a source, an option or a corpus that cannot be used; `out` holds something else.
        RunError: the disk is full; what was finished is kept.
    """
    settings = from_dict(PrepareConfig, {**to_dict(config or PrepareConfig()), **options}, "prepare")
    out = Path(out)
    _refuse_foreign(out)
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    if settings.language:
        language_filter(settings.language)
    found, skipped = find_sources(sources, exclude=out)
    request = _request(settings, tokenizer, found)
    if (out / MANIFEST).is_file():
        corpus = Corpus.open(out)
        _refuse_other(out, corpus.manifest["request"], request, ("clean", "tokens", "sources"))
    else:
        with _full_disk_explained(out), _work_folder(out) as work:
            _Job(settings, found, skipped, out, work, progress or _silent).run(tokenizer, request)
        corpus = Corpus.open(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return corpus


class _Job:
    def __init__(
        self,
        config: PrepareConfig,
        sources: Sequence[Source],
        skipped: Sequence[str],
        out: Path,
        work: Path,
        progress: Progress,
    ) -> None:
        self.config, self.sources, self.skipped = config, sources, skipped
        self.out, self.work, self.progress = out, work, progress

    def run(self, tokenizer: Tokenizer | None, request: dict[str, Any]) -> None:
        self._claim(request)
        chunks = Gatherer(self.sources, self.config, self.work, self.progress).run()
        tally = Tally()
        for chunk in chunks:
            tally.add(chunk.tally)
        if tally.kept < MIN_DOCUMENTS:
            chunks[0].marker_file.unlink()
            raise InputError(_too_small(tally))
        chunks = [chunk for chunk in chunks if chunk.tally.kept]
        limit = heldout_limit(chunks, self.config.heldout)
        seconds = self._write_tokenizer(tokenizer, chunks, limit, tally.bytes)
        # The file, not the object: what is used is what is kept.
        encoder = Encoder(Tokenizer.from_file(str(self.out / TOKENIZER)), limit, self.out, self.work, self.progress)
        counts = encoder.run(chunks)
        shards = {split: [count["shards"][split] for count in counts if split in count["shards"]] for split in SPLITS}
        manifest = manifest_of(
            self.out,
            shards,
            config=to_dict(self.config),
            statistics=statistics(self.out, self.sources, self.skipped, tally, counts, shards, seconds),
            versions=versions(_PACKAGES),
            request=request,
        )
        write_json_atomic(self.out / MANIFEST, manifest)

    def _claim(self, request: dict[str, Any]) -> None:
        """Record what is being made, or refuse if finished work was made from something else."""
        file = self.work / "request.json"
        chunks = finished_chunks(self.work)
        if file.is_file() and chunks:
            before = json.loads(file.read_text(encoding="utf-8"))
            at = chunks[-1].marker
            used = len(self.sources) if at["done"] else at["source"] + 1
            now = {**request, "sources": request["sources"][:used]}
            before_used = {**before, "sources": before["sources"] if at["done"] else before["sources"][:used]}
            stages = ("clean", "sources", "tokens") if self._timing.is_file() else ("clean", "sources")
            _refuse_other(self.out, before_used, now, stages)
        write_json_atomic(file, request)

    @property
    def _timing(self) -> Path:
        return self.work / "tokenizer.json"

    def _write_tokenizer(self, tokenizer: Tokenizer | None, chunks: list[Chunk], limit: int, num_bytes: int) -> float:
        """Put tokenizer.json in place unless it is; returns the seconds that this took."""
        if not self._timing.is_file():
            started = time.monotonic()
            self.progress("tokenizer", 0, None, "taken as given" if tokenizer else "training")
            made = tokenizer or self._train(chunks, limit, num_bytes)
            write_text_atomic(self.out / TOKENIZER, made.to_str(pretty=True))
            write_json_atomic(self._timing, time.monotonic() - started)
            self.progress("tokenizer", 1, 1, f"{made.get_vocab_size():,} tokens")
        return float(json.loads(self._timing.read_text(encoding="utf-8")))

    def _train(self, chunks: list[Chunk], limit: int, num_bytes: int) -> Tokenizer:
        config, chosen = self.config, preset(self.config.preset)
        return train_tokenizer(
            lambda: self._reported(train_texts(chunks, limit, TOKENIZER_SAMPLE), min(num_bytes, TOKENIZER_SAMPLE)),
            config.tokenizer_kind,
            config.vocab_size or default_vocab_size(num_bytes),
            lowercase=chosen.lowercase if config.lowercase is None else config.lowercase,
            strip_accents=chosen.strip_accents and config.lowercase is not False,
            tags=chosen.tags,
            shrink=config.vocab_size is None,
        )

    def _reported(self, texts: Iterable[str], total: int) -> Iterator[str]:
        done = shown = 0
        for text in texts:
            yield text
            done += len(text)
            if done - shown >= 1 << 20:
                shown = done
                self.progress("tokenizer", min(done, total), total, "learning from a sample")


def _request(config: PrepareConfig, tokenizer: Tokenizer | None, sources: Sequence[Source]) -> dict[str, Any]:
    """What decides the result, by the stage that first depends on it."""
    options = to_dict(config)
    options["tokenizer"] = hashlib.sha256(tokenizer.to_str().encode()).hexdigest() if tokenizer else None
    return {
        "clean": {name: options[name] for name in _CLEAN_OPTIONS},
        "tokens": {name: options[name] for name in _TOKEN_OPTIONS},
        "sources": [[source.path.name, source.size, source.identity] for source in sources],
    }


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file() and not (out / WORK).is_dir():
        raise InputError(f"--out {out}: the folder holds other files; name a new or empty one")


def _refuse_other(out: Path, before: dict[str, Any], now: dict[str, Any], parts: Sequence[str]) -> None:
    differences = [
        f"{name} was {before[part][name]!r} and is {now[part][name]!r}"
        for part in parts
        if part != "sources"
        for name in now[part]
        if before[part][name] != now[part][name]
    ]
    if "sources" in parts and before["sources"] != now["sources"]:
        pairs = itertools.zip_longest(before["sources"], now["sources"], fillvalue=["none"])
        old, new = next((old[0], new[0]) for old, new in pairs if list(old) != list(new))
        differences.append(f"source {old} has changed" if old == new else f"source {old} was where {new} is")
    if differences:
        raise InputError(
            f"--out {out}: holds data made otherwise: {'; '.join(differences)}; name another folder, or delete this one"
        )


def _too_small(tally: Tally) -> str:
    reasons = sorted(tally.dropped.items(), key=lambda item: -item[1]["documents"])
    counts = ", ".join(f"{counts['documents']} {reason}" for reason, counts in reasons) or "none dropped"
    left = f"only {tally.kept}" if tally.kept else "nothing is"
    return (
        f"{left} left of {tally.read} documents read ({counts}); at least {MIN_DOCUMENTS} are needed: add text, take a "
        "milder --preset (raw keeps everything), or cut .txt files otherwise (--document line or paragraph)"
    )


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder of unfinished work, for one process at a time; nothing is left behind if nothing was finished."""
    created, work = not out.exists(), out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {out}: another `terrazzo prepare` is writing to this folder") from None
        for stray in (*out.glob(".*.tmp"), *work.glob(".*.tmp")):
            stray.unlink()
        try:
            yield work
        finally:
            if not finished_chunks(work):
                shutil.rmtree(out if created else work)


@contextmanager
def _full_disk_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"--out {out}: the disk is full; make room (about twice the size of the text is needed) and run the same "
            "command again, it goes on where it stopped"
        ) from error


def _silent(stage: str, done: int, total: int | None, note: str) -> None:
    pass
