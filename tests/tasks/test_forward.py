"""Masks guessed: exact, in pieces, and each token decoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.tasks import forward
from terrazzo.tasks.batches import collate
from terrazzo.tasks.forward import Guesses, guess, predictions, run
from terrazzo.tasks.task import Encoded
from terrazzo.testing import TINY_MODEL

FIELDS = {name: TINY_MODEL[name] for name in ("width", "depth", "num_heads", "mlp_width", "max_len")}
MASKS = ([1, 3], [0], [2, 4, 5])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedLM(mosaicbert("tiny", 50, **FIELDS)).eval()


def documents():
    dice = np.random.default_rng(0)
    return [Encoded(ids=dice.integers(0, 50, 6), positions=np.array(places)) for places in MASKS]


def test_guesses_are_the_largest_of_the_softmax_and_never_many_logits_exist(model, monkeypatch):
    seen, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden_MD: seen.append(len(hidden_MD)) or logits(hidden_MD))
    monkeypatch.setattr(forward, "_LOGITS", 100)  # two rows of 50
    found = run(model.encoder, documents(), [guess(model, 7)] * 3)
    assert seen == [2, 2, 2]
    for one, document in zip(found, documents(), strict=True):
        with torch.no_grad():
            p_TV = logits(model.encoder(collate([Encoded(ids=document.ids)]))).softmax(-1).numpy()
        for mask, ids, probabilities in zip(document.positions, one.ids_MK, one.probabilities_MK, strict=True):
            assert ids.tolist() == np.argsort(-p_TV[mask])[:7].tolist()
            np.testing.assert_allclose(probabilities, p_TV[mask][ids], rtol=1e-5)


def test_more_guesses_than_there_are_tokens_are_all_of_them(model):
    (found, *_) = run(model.encoder, documents(), [guess(model, 1000)] * 3)
    assert found.ids_MK.shape == found.probabilities_MK.shape == (2, 50)


class Counting:
    """A tokenizer that notes what it decodes."""

    def __init__(self):
        self.decoded = []

    def decode_batch(self, batch):
        self.decoded += batch
        return [f"t{token}" for (token,) in batch]


def test_each_token_is_decoded_once(model):
    tokenizer = Counting()
    ids_MK = np.array([[3, 1], [1, 3]])
    one = Guesses(ids_MK=ids_MK, probabilities_MK=np.array([[0.5, 0.25], [0.75, 0.125]], dtype=np.float32))
    first, second = predictions([one, one], tokenizer)
    assert sorted(tokenizer.decoded) == [[1], [3]]
    assert first == second
    assert [[(p.token, p.id, p.probability) for p in mask] for mask in first] == [
        [("t3", 3, 0.5), ("t1", 1, 0.25)],
        [("t1", 1, 0.75), ("t3", 3, 0.125)],
    ]
    assert predictions([], tokenizer) == []
