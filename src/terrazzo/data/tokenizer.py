"""Tokenizers: trained on a corpus or reused, always in the form that gives model-ready ids."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from terrazzo.data.corpus import TOKENIZER, SpecialTokens, id_space
from terrazzo.errors import InputError

TokenizerKind = Literal["wordpiece", "bpe"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_FREQUENCY = 2
#: WordPiece learns characters until they make up this share of the text; a word with a rarer one is unknown
ALPHABET_COVERAGE = 0.9999
_MULTIPLE = 64
#: (megabytes of text, vocabulary): the size chosen for a corpus of at least that much text
_SIZES = ((0, 2_048), (1, 4_096), (4, 8_192), (16, 16_384), (64, 32_768))


def round_up(size: int) -> int:
    """The next multiple of 64, the shape that matrix units like."""
    return -(-size // _MULTIPLE) * _MULTIPLE


def default_vocab_size(num_bytes: int) -> int:
    """A vocabulary that a corpus of so many bytes can fill with tokens that it then sees often enough to learn."""
    return max(size for megabytes, size in _SIZES if num_bytes >= megabytes * 1_000_000)


def train_tokenizer(
    texts: Callable[[], Iterable[str]],
    kind: TokenizerKind,
    vocab_size: int,
    *,
    lowercase: bool = False,
    strip_accents: bool = False,
    tags: Sequence[str] = (),
    shrink: bool = False,
) -> Tokenizer:
    """Train a tokenizer; the same texts always give the same one.

    Args:
        texts: called for each pass over the texts.
        vocab_size: rounded up to a multiple of 64.
        lowercase, strip_accents: fold case; make `é` an `e` (BERT's uncased vocabularies do both).
        tags: strings that stay one token each, such as `<usr>`; they are ordinary tokens, not special ones.
        shrink: if the texts do not support so many tokens, take the multiple of 64 that they do support.

    Raises:
        InputError: the texts do not support `vocab_size` tokens and `shrink` is off; the number that they do is named.
    """
    shape = partial(_wordpiece_shape if kind == "wordpiece" else _byte_level_shape, lowercase, strip_accents)
    size = round_up(vocab_size)
    tokenizer = _trained(texts, kind, shape(), size, tags)
    if tokenizer.get_vocab_size() > size:
        raise InputError(
            f"--vocab-size {vocab_size}: the single characters of the corpus alone make {tokenizer.get_vocab_size()} "
            f"tokens; take --vocab-size {round_up(2 * tokenizer.get_vocab_size())} or more"
        )
    reached = tokenizer.get_vocab_size()
    while tokenizer.get_vocab_size() < size:
        size = tokenizer.get_vocab_size() // _MULTIPLE * _MULTIPLE
        if size == 0:
            raise InputError(f"the corpus supports only {reached} tokens, too few for a tokenizer; add text")
        tokenizer = _trained(texts, kind, shape(), size, tags)
    if reached < round_up(vocab_size) and not shrink:
        raise InputError(
            f"--vocab-size {vocab_size}: the corpus supports only {reached} tokens (pieces that occur at least "
            f"{MIN_FREQUENCY} times); take --vocab-size {size} or less, or add text"
        )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from a `tokenizer.json` or from a folder that holds one, without its padding and truncation.

    If encoding does not put its start and end tokens around a text, it is made to.

    Raises:
        InputError: no such file, another format, or one of the five special tokens is missing.
    """
    file = Path(path) / TOKENIZER if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"--tokenizer {path}: no {file}; give a tokenizer.json or a folder that holds one (an older vocab.txt or "
            "merges.txt becomes one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"--tokenizer {file}: not a tokenizer.json of the tokenizers library ({error})") from None
    special = SpecialTokens.of(tokenizer, f"--tokenizer {file}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = tokenizer.encode("a").ids
    if not (ids and ids[0] == special.cls and ids[-1] == special.sep):
        tokenizer.post_processor = _template(tokenizer, special)
    return tokenizer


def encodable(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens, in parallel; a text that says `[MASK]` gives ordinary tokens."""
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = False


def word_start_table(tokenizer: Tokenizer) -> np.ndarray:
    """bool `(vocab_size,)`: whether a token begins a word, for masking whole words.

    WordPiece: every token without the continuation prefix `##`. Byte-level BPE and SentencePiece: tokens that begin
    with the marker of a space or line end (`Ġ`, `▁`, `Ċ`). Added tokens begin words, and so does the first token of a
    document whatever it is, which the table cannot know.
    """
    model = json.loads(tokenizer.to_str())["model"]
    prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    starts = np.ones(id_space(tokenizer), dtype=bool)
    for token, index in pieces.items():
        starts[index] = not token.startswith(prefix) if prefix else token.startswith(("Ġ", "▁", "Ċ"))
    starts[list(tokenizer.get_added_tokens_decoder())] = True
    return starts


def _trained(
    texts: Callable[[], Iterable[str]], kind: TokenizerKind, shape: Tokenizer, vocab_size: int, tags: Sequence[str]
) -> Tokenizer:
    reserved = [*SPECIAL, *tags]
    trainer: trainers.Trainer
    if kind == "wordpiece":
        trainer = _wordpiece_trainer(texts, shape.normalizer, vocab_size, reserved)
    else:
        trainer = _byte_level_trainer(vocab_size, reserved)
    shape.train_from_iterator(texts(), trainer)
    # The trainer marks all that is reserved as special; only the five are, and of WordPiece's reserved characters none.
    tokenizer = Tokenizer(shape.model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    tokenizer.decoder = shape.decoder
    # In byte-level BPE a space belongs to the word after it, so also to a mask or a tag that stands for a word.
    space_before = kind == "bpe"
    tokenizer.add_special_tokens([AddedToken(name, lstrip=space_before and name == "[MASK]") for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(tag, normalized=False, lstrip=space_before) for tag in tags])
    tokenizer.post_processor = _template(tokenizer, SpecialTokens.of(tokenizer))
    return tokenizer


def _wordpiece_shape(lowercase: bool, strip_accents: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _byte_level_shape(lowercase: bool, strip_accents: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    accents = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    case = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([*accents, normalizers.NFC(), *case])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wordpiece_trainer(
    texts: Callable[[], Iterable[str]],
    normalizer: normalizers.Normalizer,
    vocab_size: int,
    reserved: Sequence[str],
) -> trainers.WordPieceTrainer:
    # Left to itself the trainer numbers the `##x` characters in the order of a randomly seeded hash map, and those
    # numbers then break ties between merges; its choice among equally rare characters is as random. Reserved, they come
    # in a fixed order, and it chooses none itself.
    alphabet = _alphabet(texts(), normalizer, limit=vocab_size // 3)
    return trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[*reserved, *alphabet, *(f"##{character}" for character in alphabet)],
        limit_alphabet=0,
        show_progress=False,
    )


def _byte_level_trainer(vocab_size: int, reserved: Sequence[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(reserved),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The characters, after normalisation, that cover the texts, at most `limit` of them, in a fixed order."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    normalised: Counter[str] = Counter()
    for character, count in raw.items():
        for result in normalizer.normalize_str(character).split():
            normalised.update(dict.fromkeys(result, count))
    frequent = sorted((-count, character) for character, count in normalised.items() if count >= MIN_FREQUENCY)
    needed = ALPHABET_COVERAGE * normalised.total()
    covered = itertools.accumulate((-count for count, _ in frequent), initial=0)
    chosen = [character for (_, character), before in zip(frequent[:limit], covered, strict=False) if before < needed]
    return sorted(chosen)


def _template(tokenizer: Tokenizer, special: SpecialTokens) -> processors.PostProcessor:
    start, end = tokenizer.id_to_token(special.cls), tokenizer.id_to_token(special.sep)
    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, special.cls), (end, special.sep)],
    )
