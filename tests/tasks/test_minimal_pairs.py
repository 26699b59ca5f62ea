from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.packed import Packed
from terrazzo.tasks.minimal_pairs import (
    MinimalPair,
    pseudo_log_likelihoods,
    read_minimal_pairs,
    score_minimal_pairs,
)

MASK = 4


def tiny_lm():
    torch.manual_seed(0)
    fields = EncoderConfig(vocab_size=40, width=16, depth=2, num_heads=2, mlp_width=24, max_len=16, init_std=0.3)
    return MaskedLM(fields).eval()


def one_by_one(model, sentence):
    total = 0.0
    for place in range(1, len(sentence) - 1):
        ids = sentence.copy()
        ids[place] = MASK
        logits_TV = model(Packed.from_sequences([ids]))
        total += float(logits_TV[place].log_softmax(-1)[sentence[place]])
    return total


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
@torch.no_grad()
def test_packed_copies_give_what_one_masked_token_at_a_time_gives(batch_tokens):
    model, draw = tiny_lm(), np.random.default_rng(0)
    sentences = [draw.integers(5, 40, size=length) for length in (7, 3, 12, 7)]
    got = pseudo_log_likelihoods(model, sentences, MASK, batch_tokens)
    np.testing.assert_allclose(got, [one_by_one(model, sentence) for sentence in sentences], rtol=1e-5)


def words():
    """A tokenizer that reads numbers and puts nothing around them by itself."""
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": MASK}
    numbers = {str(number): number for number in range(50) if number not in special.values()}
    tokenizer = Tokenizer(WordLevel(special | numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def test_accuracy_is_the_mean_over_paradigms_and_ties_are_errors():
    model = tiny_lm()
    texts = ["9 8 7", "11 12 13"]
    first, second = pseudo_log_likelihoods(model, [np.array([2, 9, 8, 7, 3]), np.array([2, 11, 12, 13, 3])], MASK)
    better, worse = texts if first > second else texts[::-1]
    pairs = [
        MinimalPair(good=better, bad=worse, paradigm="a", phenomenon="x"),
        MinimalPair(good=better, bad=better, paradigm="b", phenomenon="x"),
        MinimalPair(good=better, bad=worse, paradigm="b", phenomenon="x"),
        MinimalPair(good=worse, bad=better, paradigm="c", phenomenon="y"),
    ]
    scores = score_minimal_pairs(model, words(), pairs)
    assert scores.paradigms == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert scores.phenomena == {"x": 0.75, "y": 0.0}
    assert scores.accuracy == 0.5 and scores.pairs == 4
    assert scores.half_width == pytest.approx(1.96 * (0.5 * 0.5 / 2) ** 0.5 / 3)


def test_pairs_come_from_blimps_files(tmp_path):
    row = {"sentence_good": "a", "sentence_bad": "b", "linguistics_term": "islands", "UID": "adjunct"}
    (tmp_path / "adjunct.jsonl").write_text("\n".join(json.dumps(row) for _ in range(3)) + "\n", encoding="utf-8")
    pairs = read_minimal_pairs(tmp_path, per_paradigm=2)
    assert pairs == [MinimalPair(good="a", bad="b", paradigm="adjunct", phenomenon="islands")] * 2
    (tmp_path / "broken.jsonl").write_text('{"sentence_good": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"broken.jsonl, line 1: .*sentence_bad"):
        read_minimal_pairs(tmp_path)
    with pytest.raises(InputError, match="BLiMP"):
        read_minimal_pairs(tmp_path / "none")


def test_a_sentence_beyond_the_model_is_refused():
    pairs = [MinimalPair(good=" ".join(["9"] * 20), bad="9", paradigm="a", phenomenon="x")]
    with pytest.raises(InputError, match="22 tokens, the model reads 16"):
        score_minimal_pairs(tiny_lm(), words(), pairs)
