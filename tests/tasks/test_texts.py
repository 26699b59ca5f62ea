"""Texts and pairs as token ids: special tokens, cutting, segments."""

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from terrazzo.errors import InputError
from terrazzo.tasks import BadRow, Example
from terrazzo.tasks.texts import encode_rows, encode_texts, frame, longest_first

WORDS = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"])}


def tokenizer(processor=None):
    made = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if processor is not None:
        made.post_processor = processor
    return made


BERT = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
ROBERTA = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=False)


@pytest.mark.parametrize("processor", [BERT, ROBERTA])
def test_pairs_are_framed_and_cut_as_the_tokenizers_library_does(processor):
    ours, theirs = tokenizer(processor), tokenizer(processor)
    for a, b, max_len in itertools.product((1, 2, 5, 9), (1, 2, 5, 9), (7, 8, 11, 12)):
        first, second = " ".join("a" * a), " ".join("b" * b)
        theirs.enable_truncation(max_len)
        expected = theirs.encode(first, second)
        (found,) = encode_texts(ours, [first], [second], max_len)
        types = np.zeros(len(found.ids)) if found.token_types is None else found.token_types
        assert (found.ids.tolist(), types.tolist()) == (expected.ids, expected.type_ids)
        assert len(found.ids) + found.truncated == a + b + ours.num_special_tokens_to_add(is_pair=True)


def test_a_tokenizer_that_frames_nothing_gets_berts_frame():
    single, pair = frame(tokenizer(), pair=False), frame(tokenizer(), pair=True)
    assert (single.before, single.after) == ((2,), (3,))
    ids, types = pair.join([5, 6], [7])
    assert ids.tolist() == [2, 5, 6, 3, 7, 3] and types.tolist() == [0, 0, 0, 0, 1, 1]
    bare = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="no CLS and SEP tokens"):
        frame(bare, pair=False)


def test_a_tokenizers_own_padding_and_truncation_do_not_matter():
    published = tokenizer(BERT)
    published.enable_padding(length=10)
    published.enable_truncation(4)
    (found,) = encode_texts(published, ["a b c d e"], [None], 6)
    assert found.ids.tolist() == [2, 5, 6, 7, 8, 3] and found.truncated == 1


def test_singles_and_pairs_mix_in_order():
    found = encode_texts(tokenizer(BERT), ["a", "b", "c"], [None, "d e", None], 16)
    assert [text.ids.tolist() for text in found] == [[2, 5, 3], [2, 6, 3, 8, 9, 3], [2, 7, 3]]


def test_what_is_cut_is_counted_however_long():
    (found,) = encode_texts(tokenizer(BERT), ["a " * 100_000], ["b"], 8)
    assert found.ids.tolist() == [2, 5, 5, 5, 5, 3, 6, 3] and found.truncated == 100_000 - 4


def test_a_length_without_room_is_refused():
    with pytest.raises(InputError, match="max_len=2: special tokens alone take 2"):
        encode_texts(tokenizer(BERT), ["a"], [None], 2)
    with pytest.raises(InputError, match="max_len=4: special tokens alone take 3"):
        encode_texts(tokenizer(BERT), ["a"], ["b"], 4)


def test_longest_first_never_cuts_the_shorter_text_below_half():
    assert longest_first(3, 100, 10) == (3, 7) and longest_first(100, 3, 10) == (7, 3)
    assert longest_first(9, 9, 9) == (4, 5) and longest_first(10, 9, 9) == (5, 4)
    assert longest_first(2, 3, 9) == (2, 3)


def test_bad_rows_stay_in_their_places():
    rows = [
        Example(text="a", target="3"),
        Example(text="  ", where="f:2"),
        Example(text="a", other="b", where="f:3"),
        Example(text="\ud83d", target="x", where="f:4"),
        Example(text="b \udc00"),
    ]

    def label(example):
        if not example.target.isdecimal():
            raise InputError(f"{example.target} is no number")
        return np.array(int(example.target))

    found = encode_rows(rows, tokenizer(BERT), 8, label, pair=False)
    assert [row.message if isinstance(row, BadRow) else row[0].ids.tolist() for row in found] == [
        [2, 5, 3],
        "the text is empty",
        "two texts where the task reads one: give text alone",
        "x is no number",
        [2, 6, 1, 3],
    ]
    assert found[0][0].label == 3 and found[1].where == "f:2" and found[4][0].label is None
    (single, empty) = encode_rows(
        [Example(text="a"), Example(text="a", other="")], tokenizer(BERT), 8, label, pair=True
    )
    assert (single.message, empty.message) == ("one text where the task reads two: give a and b", "a text is empty")
