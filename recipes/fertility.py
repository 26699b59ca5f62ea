"""How many tokens a word takes: a tokenizer learnt on the language against an English one of the same size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from recipes.wikipedia import write_part
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.testing import tiny_texts


def english_tokenizer(wikipedia: Path | None, work: Path, megabytes: float, vocab_size: int) -> Corpus:
    """Data of English text with a cased byte-level BPE of `vocab_size` tokens; without `wikipedia`, invented."""
    part = work / "english.jsonl"
    if wikipedia is None:
        write_jsonl(part, tiny_texts(400))
    elif not part.exists():
        write_part(wikipedia, part, round(megabytes * 2**20), paragraphs=True)
    size = vocab_size if wikipedia else None
    return prepare([part], work / "english", PrepareConfig(tokenizer_kind="bpe", lowercase=False, vocab_size=size))


def tokens_per_word(sources: Sequence[Path], out: Path, preset: str, tokenizer: Path) -> float:
    """Mean tokens of a word (between spaces) of `sources` under a given tokenizer."""
    corpus = prepare(sources, out, PrepareConfig(preset=preset, tokenizer=str(tokenizer)))
    return float(corpus.manifest["statistics"]["tokens_per_word"])


def write_jsonl(file: Path, texts: Iterable[str]) -> None:
    """One object a line with a field text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
