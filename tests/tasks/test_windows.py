"""Windows lose nothing and overlap; every token is read where it has most context; characters survive tokenizers."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.tasks import windows
from terrazzo.tasks.schemes import split_words

TEXTS = [
    "the cat purrs in the garden, isn't it? 🙂👍🏽 done.",
    "e\u0301te\u0301 at İSTANBUL's gate, ﬁne Straße ½",
    "q\u0307\u0323 cat q\u0307\u0323q\u0307\u0323 in q\u0307\u0323, the q\u0307\u0323",
    "  two\n\nlines\tand\u00a0more  東京 हिन्दी 😀x ",
    "the dog barks near the old house while it rains until morning " * 3,
]


def tokenizers() -> dict[str, Tokenizer]:
    made = {
        "wordpiece cased": train_tokenizer(lambda: TEXTS * 3, "wordpiece", 256, shrink=True),
        "wordpiece lowercased": train_tokenizer(
            lambda: TEXTS * 3, "wordpiece", 256, lowercase=True, strip_accents=True, shrink=True
        ),
        "bpe": train_tokenizer(lambda: TEXTS * 3, "bpe", 320, shrink=True),
        "bpe trimmed": train_tokenizer(lambda: TEXTS * 3, "bpe", 320, shrink=True),
        "bpe lowercased": train_tokenizer(lambda: TEXTS * 3, "bpe", 320, lowercase=True, shrink=True),
    }
    trimmed = made["bpe trimmed"]
    trimmed.normalizer = normalizers.Sequence([])
    trimmed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    cls, sep = (trimmed.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    trimmed.post_processor = processors.RobertaProcessing(("[SEP]", sep), ("[CLS]", cls), add_prefix_space=True)
    return made


TOKENIZERS = tokenizers()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_first_token_of_a_word_is_the_first_that_shares_a_character_with_it(name: str, text: str) -> None:
    tokens = windows.tokens_of(TOKENIZERS[name], [text])[0]
    words = np.array(split_words(text))
    found = tokens.first_within(words[:, 0], words[:, 1])
    for (start, end), token in zip(words.tolist(), found.tolist(), strict=True):
        sharing = [
            i
            for i, (a, b) in enumerate(TOKENIZERS[name].encode(text, add_special_tokens=False).offsets)
            if max(a, start) < min(b, end)
        ]
        assert token == (sharing[0] if sharing else -1), text[start:end]


def test_characters_without_a_token_are_found_missing() -> None:
    tokens = windows.tokens_of(TOKENIZERS["wordpiece lowercased"], ["\x00 cat \x07\x00", "\x00", ""])
    assert tokens[0].first_within(np.array([0, 2, 6, 7]), np.array([1, 5, 7, 8])).tolist() == [-1, 0, -1, -1]
    assert tokens[1].first_within(np.array([0]), np.array([1])).tolist() == [-1]
    assert tokens[2].first_within(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_windows_lose_nothing_and_overlap() -> None:
    draw = random.Random(0)
    for _ in range(500):
        length, size = draw.randint(0, 400), draw.randint(2, 100)
        overlap = draw.randint(0, size // 2)
        given = windows.windows(length, size, overlap)
        assert given[0, 0] == 0 and given[-1, 1] == length
        widths = given[:, 1] - given[:, 0]
        assert widths.max() <= size
        if len(given) > 1:
            assert (given[:-1, 1] - given[1:, 0]).min() >= overlap, "less overlap than asked for"
            assert widths.min() >= size // 2, "a stump"
            assert length > (len(given) - 1) * (size - overlap) + overlap, "more windows than it takes"


def test_an_overlap_of_more_than_half_is_half() -> None:
    assert windows.windows(10, 4, 100).tolist() == windows.windows(10, 4, 2).tolist()
    assert windows.windows(3, 1, 5).tolist() == [[0, 1], [1, 2], [2, 3]]


def test_every_token_is_read_where_it_has_most_context() -> None:
    draw = random.Random(1)
    for _ in range(100):
        length, size = draw.randint(1, 90), draw.randint(4, 30)
        given = windows.windows(length, size, draw.randint(0, size // 2))
        chosen = windows.most_context(given, np.arange(length))
        for token in range(length):
            scores = []
            for start, end in given.tolist():
                left = token - start if start else length
                right = end - 1 - token if end < length else length
                scores.append(min(left, right) if start <= token < end else -1)
            assert scores[chosen[token]] == max(scores) >= 0
