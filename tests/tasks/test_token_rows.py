"""Training the rows of the token table that the data holds equals training the whole table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig
from terrazzo.tasks.batches import collate
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.task import Encoded
from terrazzo.tasks.token_rows import TABLE, TokenRows

TEXTS = ([2, 40, 7, 3], [2, 7, 7, 19, 3], [2, 60, 3])


def made():
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "dropout": 0.0}
    return TaskModel(Encoder(EncoderConfig(**shape)), LabelTask(classes=("a", "b"), dropout=0.0))


def trained(model, documents):
    optimizer = AdamWConfig(lr=1e-2, weight_decay=0.0).build(model)
    for _ in range(3):
        batch = collate(documents)
        loss = model.task_loss(batch, SupervisedConfig())
        loss.sum.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.fixture
def documents():
    return [Encoded(ids=np.array(ids), label=np.array(i % 2)) for i, ids in enumerate(TEXTS)]


def test_equals_training_the_whole_table(documents):
    whole, narrow = made(), made()
    rows = TokenRows.narrow(narrow, documents)
    assert narrow.encoder.embeddings.tokens.weight.shape == (6, 16)
    expected, got = trained(whole, documents), rows.widen(trained(narrow, rows.renumbered(documents)))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    assert not torch.equal(got[TABLE][7], made().state_dict()[TABLE][7]), "a row in use was not trained"


def test_widened_and_selected_again(documents):
    model = made()
    before = model.state_dict()[TABLE].clone()
    rows = TokenRows.narrow(model, documents)
    state = model.state_dict()
    torch.testing.assert_close(rows.widen(state)[TABLE], before, rtol=0, atol=0)
    torch.testing.assert_close(rows.select(rows.widen(state))[TABLE], state[TABLE], rtol=0, atol=0)
    assert documents[0].ids.tolist() == TEXTS[0], "the caller's documents were renumbered"
