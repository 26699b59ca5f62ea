"""Next tokens: each document's own, predicted from what precedes them, learnable, and refused where they would leak."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from terrazzo.config import from_dict, to_dict
from terrazzo.data.corpus import SpecialTokens
from terrazzo.errors import InputError
from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.objectives import CLM, CLMConfig, MLMConfig, ObjectiveConfig
from terrazzo.packed import Packed
from terrazzo.testing import TINY_MODEL, check_method, tiny_run
from terrazzo.train import Init, train

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
DOCUMENTS = [[2, 11, 12, 13, 3], [2], [2, 14, 3], [2, 15, 16, 3]]


def corrupted() -> Packed:
    objective = CLMConfig().build(SPECIAL, 32)
    return objective.corrupt(Packed.from_sequences(DOCUMENTS), 5)


def test_labels_are_the_next_tokens_and_never_cross_documents() -> None:
    batch = corrupted()
    wanted, start = [], 0
    for document in DOCUMENTS:
        wanted += [(start + i, document[i + 1]) for i in range(len(document) - 1)]
        start += len(document)
    assert list(zip(batch.masked_M.tolist(), batch.labels_M.tolist(), strict=True)) == wanted
    assert batch.masked_M.dtype == batch.labels_M.dtype == torch.int64
    assert batch.tokens_T.tolist() == [token for document in DOCUMENTS for token in document]


def test_loss_is_that_of_each_prefix_alone() -> None:
    """The sum over all tokens equals the sum over prefixes, each read as a document of its own."""
    model = MaskedLM(mosaicbert("tiny", 32, **TINY_MODEL, dropout=0.0, causal=True))
    loss = CLM().loss(model, corrupted())
    slow = torch.zeros(())
    for document in DOCUMENTS:
        for length in range(1, len(document)):
            logits = model(Packed.from_sequences([document[:length]]))[-1]
            slow += F.cross_entropy(logits, torch.tensor(document[length]))
    assert_close(loss.sum, slow)
    assert loss.weight == 9


def test_a_bidirectional_encoder_is_refused(tmp_path, corpus) -> None:
    pattern = "objective.kind is 'clm'.*model.fields.causal is false.*set model.fields.causal=true"
    with pytest.raises(InputError, match=pattern):
        train(tiny_run(corpus.path, tmp_path / "run", objective=CLMConfig()))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=pattern):
        CLM().loss(MaskedLM(mosaicbert("tiny", 32, **TINY_MODEL)), corrupted())


def test_it_is_told_apart_by_its_kind() -> None:
    assert from_dict(ObjectiveConfig, {"kind": "clm"}) == CLMConfig()
    assert from_dict(ObjectiveConfig, to_dict(MLMConfig(rate=0.2))) == MLMConfig(rate=0.2)
    with pytest.raises(InputError, match="rate"):
        from_dict(ObjectiveConfig, {"kind": "clm", "rate": 0.2})


def test_it_trains_like_every_method(tmp_path) -> None:
    model = Init(fields={**TINY_MODEL, "causal": True, "dropout": 0.0})
    check_method(tmp_path, steps=20, model=model, objective=CLMConfig())
    samples = json.loads((tmp_path / "whole" / "samples.json").read_text())
    assert all(len(s["truth"]) == len(s["predictions"]) == s["text"].count("[MASK]") == 1 for s in samples)
    assert all(s["text"].endswith("[MASK]") for s in samples)
