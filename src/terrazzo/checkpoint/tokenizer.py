"""The tokenizer of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig

TOKENIZER = "tokenizer.json"
_ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def load_tokenizer(folder: str | Path, config: EncoderConfig) -> Tokenizer:
    """The tokenizer of a folder, from tokenizer.json or from a BERT vocab.txt, without truncation and padding.

    Raises:
        InputError: no tokenizer, a damaged one, or one with ids beyond the embedding of `config`.
    """
    folder = Path(folder)
    file, vocabulary = folder / TOKENIZER, folder / "vocab.txt"
    if file.is_file():
        tokenizer = read_tokenizer(file)
    elif vocabulary.is_file():
        tokenizer = _wordpiece(vocabulary, _settings(folder / "tokenizer_config.json"))
    else:
        raise InputError(f"{folder}: no {TOKENIZER}; put the one that the model was trained with into the folder")
    refuse_larger_vocabulary(tokenizer, config.vocab_size, file if file.is_file() else vocabulary)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer file as it is.

    Raises:
        InputError: it is missing or does not parse.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such tokenizer file")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{file}: does not parse as a tokenizer ({error}); copy or download it again") from None


def refuse_larger_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: Path) -> None:
    """Raise InputError where the tokenizer has ids that the embedding has not."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise InputError(
            f"{source}: gives token ids up to {largest}, the model's embedding ends at {vocab_size - 1}: "
            "use the tokenizer that the model was trained with"
        )


def special_tokens(tokenizer: Tokenizer) -> dict[str, tuple[str, int]]:
    """Text and id of the special tokens that a tokenizer has, by role: pad, unk, cls, sep, mask."""
    found = {}
    for role, names in _ROLES.items():
        ids = [(name, index) for name in names if (index := tokenizer.token_to_id(name)) is not None]
        found.update({role: ids[0]} if ids else {})
    return found


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens that a tokenizer has, by role."""
    return {role: index for role, (_, index) in special_tokens(tokenizer).items()}


def tokenizer_config(tokenizer: Tokenizer, config: EncoderConfig) -> dict[str, Any]:
    """The tokenizer_config.json with which transformers opens the tokenizer.json as it is."""
    segments = ["token_type_ids"] if config.token_types > 1 else []
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_len,
        "model_input_names": ["input_ids", *segments, "attention_mask"],
        **{f"{role}_token": token for role, (token, _) in special_tokens(tokenizer).items()},
    }


def _settings(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file}: does not parse: {error}") from None


def _wordpiece(vocabulary: Path, settings: dict[str, Any]) -> Tokenizer:
    """BERT's WordPiece from its vocabulary, one token a line; uncased where no setting says otherwise."""
    tokenizer = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = special_tokens(tokenizer)
    if {"cls", "sep"} - set(special):
        raise InputError(f"{vocabulary}: has no [CLS] and [SEP]: not a vocabulary of the BERT family")
    tokenizer.post_processor = processors.BertProcessing(special["sep"], special["cls"])
    tokenizer.add_special_tokens([token for token, _ in special.values()])
    return tokenizer
