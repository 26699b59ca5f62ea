"""A bounded part of a JSONL corpus as prepared data: paragraphs or whole articles of the first megabytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from recipes.claims import Tier
from recipes.runner import Context
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.errors import InputError
from terrazzo.testing import tiny_corpus

SOURCE = "English Wikipedia as .jsonl files with a `text` field, e.g. extracted from https://dumps.wikimedia.org"


def corpus_of(tier: Tier, context: Context, megabytes: float, vocab_size: int, documents: int = 400) -> Corpus:
    """Paragraphs of the first megabytes; in the smoke tier so many tiny documents, made anew.

    Raises:
        InputError: the data set is missing.
    """
    if tier == "smoke":
        shutil.rmtree(context.work / "data", ignore_errors=True)
        return tiny_corpus(context.work / "data", documents)
    context.log(f"preparing {megabytes:g} MB of paragraphs")
    folder = context.data("enwiki", SOURCE)
    return prepared_part(folder, context.work, megabytes=megabytes, vocab_size=vocab_size, paragraphs=True)


def prepared_part(folder: Path, work: Path, *, megabytes: float, vocab_size: int, paragraphs: bool) -> Corpus:
    """The data folder of the first `megabytes` of text under `folder`, made in `work` or found there.

    Args:
        paragraphs: every line of an article is a document; False keeps articles whole.

    Raises:
        InputError: `folder` holds no .jsonl files with text.
    """
    kind = "paragraphs" if paragraphs else "articles"
    part = work / f"{kind}-{megabytes:g}mb.jsonl"
    if not part.exists():
        write_part(folder, part, round(megabytes * 2**20), paragraphs)
    return prepare([part], work / f"{part.stem}-v{vocab_size}", PrepareConfig(vocab_size=vocab_size))


def write_part(folder: Path, out: Path, num_bytes: int, paragraphs: bool) -> None:
    """Write documents of at least five words until `num_bytes` of text are written; whole or absent."""
    temporary = out.with_suffix(".tmp")
    written = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for text in documents(folder, paragraphs):
            if len(text.split()) < 5:
                continue
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= num_bytes:
                break
    if not written:
        raise InputError(f"{folder}: no .jsonl files with a `text` field; expected {SOURCE}")
    os.replace(temporary, out)


def documents(folder: Path, paragraphs: bool) -> Iterator[str]:
    """Texts in the order of the files, line by line where `paragraphs` asks for it."""
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line).get("text", "")
                yield from text.split("\n") if paragraphs else [text]
