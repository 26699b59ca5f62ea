"""What a person can choose about preparing data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from terrazzo.config import config
from terrazzo.data.cleaning import preset
from terrazzo.errors import InputError

#: stage ("clean", "tokenizer", "tokens"), done, total (None: not known), what to say beside the bar
Progress = Callable[[str, int, int | None, str], None]
#: beyond what any corpus supports; the trainer sets memory aside for it
MAX_VOCAB_SIZE = 1 << 24


@config
class PrepareConfig:
    """Options of `prepare`.

    Args:
        preset: the cleaning steps: english, german, tweets or raw.
        text_field: the field of .jsonl, .csv, .parquet and hub rows that holds the text.
        document: what a document of a .txt file is: a line, a paragraph (a block between blank lines), the whole file,
            or "auto": paragraphs where the file has blank lines, otherwise lines.
        language: keep only documents in this language (ISO 639-1 code); None keeps all.
        near_duplicates: drop documents at least this similar to an earlier one (Jaccard index of word 3-grams);
            None looks for exact duplicates only.
        vocab_size: tokens of the tokenizer to train, rounded up to a multiple of 64; None fits it to the corpus.
        tokenizer: a tokenizer.json, or a folder that holds one, to use instead of training one.
        tokenizer_kind: "wordpiece" (BERT) or "bpe" (byte-level, RoBERTa and GPT).
        lowercase: fold case in the tokenizer; None takes the preset's choice.
        heldout: share of the documents to hold out; None takes 0.5 %, at least 200, at most 2000, never over 10 %.
        shard_bytes: UTF-8 bytes of text that make a shard, and the work that a kill can lose.
        workers: processes that clean; has no effect on the result. Needs a script with `if __name__ == "__main__"`.
    """

    preset: str = "english"
    text_field: str = "text"
    document: Literal["auto", "line", "paragraph", "file"] = "auto"
    language: str | None = None
    near_duplicates: float | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    tokenizer_kind: Literal["wordpiece", "bpe"] = "wordpiece"
    lowercase: bool | None = None
    heldout: float | None = None
    shard_bytes: int = 256 << 20
    workers: int = 1

    def __post_init__(self) -> None:
        preset(self.preset)
        if self.vocab_size is not None and self.tokenizer is not None:
            raise InputError(
                "--vocab-size and --tokenizer exclude each other: a given tokenizer has its own vocabulary"
            )
        if self.vocab_size is not None and not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise InputError(f"--vocab-size must be from 1 to {MAX_VOCAB_SIZE:,}, got {self.vocab_size}")
        if self.heldout is not None and not 0 < self.heldout <= 0.5:
            raise InputError(f"--heldout is a share of the documents, above 0 and up to 0.5, got {self.heldout}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates < 1:
            raise InputError(
                f"--near-duplicates is a similarity between 0 and 1 such as 0.8, got {self.near_duplicates}"
            )
        for name in ("shard_bytes", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
