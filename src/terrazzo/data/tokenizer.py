"""Tokenizers: trained on a corpus or reused, always in the form that gives model-ready ids."""

from __future__ import annotations

import json

import numpy as np
from tokenizers import Tokenizer


def word_start_table(tokenizer: Tokenizer) -> np.ndarray:
    """bool `(vocab_size,)`: whether a token begins a word, for masking whole words.

    WordPiece: every token without the continuation prefix `##`. Byte-level BPE and SentencePiece: tokens that begin
    with the marker of a space or line end (`Ġ`, `▁`, `Ċ`). Added tokens begin words, and so does the first token of a
    document whatever it is, which the table cannot know.
    """
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    starts = np.ones(tokenizer.get_vocab_size(), dtype=bool)
    prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
    inner = tokenizer.get_vocab(with_added_tokens=False)
    for token, index in vocabulary.items():
        if token in inner:
            starts[index] = not token.startswith(prefix) if prefix else token.startswith(("Ġ", "▁", "Ċ"))
    for index in tokenizer.get_added_tokens_decoder():
        starts[index] = True
    return starts
