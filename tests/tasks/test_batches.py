"""Batches of labelled documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terrazzo.errors import InputError
from terrazzo.tasks import Encoded
from terrazzo.tasks.batches import by_budget, by_shares, collate


def document(*ids, **fields):
    return Encoded(ids=np.array(ids), **fields)


def test_classes_and_problems_of_documents_lie_side_by_side():
    batch = collate([document(2, 7, 3, label=np.array(4), problem=0), document(2, 3, label=np.array(1), problem=2)])
    assert batch.lengths == (3, 2) and batch.tokens_T.tolist() == [2, 7, 3, 2, 3]
    assert batch.labels_B.tolist() == [4, 1] and batch.labels_B.dtype == torch.int64
    assert batch.problems_B.tolist() == [0, 2]
    assert batch.token_types_T is None and batch.masked_M is None and batch.labels_M is None


def test_tags_are_counted_from_the_start_of_the_batch():
    first = document(2, 7, 8, 3, positions=np.array([1, 2]), label=np.array([5, 6]))
    empty = document(2, 3, positions=np.array([], dtype=np.int64), label=np.array([], dtype=np.int64))
    second = document(2, 9, 3, positions=np.array([1]), label=np.array([7]))
    batch = collate([first, empty, second])
    assert batch.masked_M.tolist() == [1, 2, 7] and batch.labels_M.tolist() == [5, 6, 7]
    assert batch.tokens_T[batch.masked_M].tolist() == [7, 8, 9]
    assert batch.labels_B is None


def test_several_classes_values_spans_and_segments():
    many = collate([document(2, 3, label=np.array([0, 1, 1], dtype=np.float32)) for _ in range(2)])
    assert many.labels_B.shape == (2, 3) and many.labels_B.dtype == torch.float32
    spans = collate([document(2, 3, label=np.array([0, 1])), document(2, 3, label=np.array([1, 1]))])
    assert spans.labels_B.tolist() == [[0, 1], [1, 1]]
    places = [document(2, 7, 3, positions=np.array([0, 1]), label=np.array([[1, 1]])) for _ in range(2)]
    answers = collate(places)
    assert answers.labels_B.tolist() == [[1, 1], [1, 1]] and answers.masked_M.tolist() == [0, 1, 3, 4]
    assert answers.labels_M is None
    pair = collate([document(2, 3, token_types=np.array([0, 1])), document(2, 3)])
    assert pair.token_types_T.tolist() == [0, 1, 0, 0]


def test_without_answers_there_are_no_labels():
    batch = collate([document(2, 3), document(2, 3)])
    assert batch.labels_B is None and batch.problems_B is None


def test_the_budget_is_kept_and_every_document_comes_once():
    runs = [run.tolist() for run in by_budget([3, 9, 0, 1, 7, 7, 30, 2], 16)]
    assert runs == [[6], [1, 4], [5, 0, 7, 3]]
    with pytest.raises(InputError, match="batch_tokens=0"):
        list(by_budget([1], 0))


@pytest.mark.parametrize("pads", [True, False])
def test_shares_cover_all_within_the_budget_and_shrink_for_several_streams(pads):
    lengths = np.random.default_rng(0).integers(0, 200, 300).tolist()
    for streams in (1, 2, 5):
        batches = list(by_shares(lengths, 1000, streams, pads))
        assert sorted(np.concatenate(batches)) == [i for i, length in enumerate(lengths) if length]
        costs = [max(lengths[i] for i in b) * len(b) if pads else sum(lengths[i] for i in b) for b in batches]
        assert max(costs) <= 1000
        if streams > 1:
            assert costs[0] > 800 and max(costs[-streams:]) <= 250
    assert [b.tolist() for b in by_shares([5, 900, 0, 7], 10, 2, pads)] == [[1], [3], [0]]
    with pytest.raises(InputError, match="batch_tokens=0"):
        list(by_shares(lengths, 0, 2, pads))
