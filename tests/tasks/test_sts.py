from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example
from terrazzo.tasks.sts import sentence_vectors, similarities


def words():
    tokenizer = Tokenizer(WordLevel({"[CLS]": 0, "[SEP]": 1, **{str(n): n for n in range(2, 20)}}, unk_token="2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    return tokenizer


def tiny_encoder():
    torch.manual_seed(0)
    fields = EncoderConfig(vocab_size=20, width=16, depth=2, num_heads=2, mlp_width=24, max_len=6, init_std=0.3)
    return Encoder(fields).eval()


@torch.no_grad()
def test_similarity_is_the_cosine_of_means_over_all_tokens():
    encoder, pairs = tiny_encoder(), [("3 4 5", "6"), ("6", "3 4 5"), ("7 8", "7 8"), ("3 4 5 6 7 8 9 10", "9")]
    got = similarities(encoder, words(), [Example(text=a, other=b) for a, b in pairs])

    def mean(text):
        ids = [0, *map(int, text.split())][:5] + [1]
        return encoder(Packed.from_sequences([ids])).mean(0)

    expected = [float(torch.cosine_similarity(mean(a), mean(b), dim=0)) for a, b in pairs]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got[2], 1.0, atol=1e-6)


def test_a_vector_does_not_depend_on_its_batch():
    encoder, tokenizer = tiny_encoder(), words()
    together = sentence_vectors(encoder, tokenizer, ["3 4 5", "6", "7 8"])
    alone = sentence_vectors(encoder, tokenizer, ["3 4 5", "6", "7 8"], batch_tokens=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
