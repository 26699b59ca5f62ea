from __future__ import annotations

import random

import numpy as np
import pytest

from terrazzo.serve.batching import PADDING_SHARE, PADDING_TOKENS, Queue, Request, company, unpadded_company
from terrazzo.tasks.task import Encoded


def request(*lengths):
    documents = [Encoded(ids=np.arange(length)) for length in lengths]
    return Request(lambda encoder, batch: [], documents, None, None)


def everything(queue):
    batches = []
    while queue:
        batches.append([(part.request, index) for part in queue.take().parts for index in part.indices])
    return batches


@pytest.mark.parametrize("seed", range(5))
def test_company_keeps_to_the_budget_and_pads_little(seed):
    draw = random.Random(seed)
    for _ in range(100):
        lengths = [draw.randint(1, 200) for _ in range(draw.randint(1, 60))]
        first, budget = draw.randrange(len(lengths)), draw.choice([64, 500, 4000])
        together = company(lengths, first, budget)
        assert first in together and len(set(together)) == len(together)
        own = [lengths[i] for i in together]
        padded = max(own) * len(own)
        assert padded <= budget or own == [lengths[first]]
        assert padded - sum(own) <= PADDING_TOKENS + PADDING_SHARE * sum(own)
        between = [i for i, length in enumerate(lengths) if min(own) < length < max(own)]
        assert set(between) <= set(together), "a document between two of the batch was left out"


def test_company_is_of_similar_length():
    lengths = [100, 900, 102, 7, 99, 8, 880]
    assert sorted(company(lengths, 0, 205)) == [0, 4]
    assert sorted(company(lengths, 0, 306)) == [0, 2, 4]
    assert sorted(company(lengths, 1, 9000)) == [1, 6]


def test_company_without_padding_is_what_came_first():
    assert unpadded_company([10, 500, 3, 90, 7], 110) == [0, 2, 3, 4]
    assert unpadded_company([10, 500, 3, 90, 7], 109) == [0, 2, 3]
    assert unpadded_company([10, 1], 5) == [0]


def test_a_queue_gives_every_document_once_and_no_batch_beyond_the_budget():
    draw = random.Random(0)
    queue, given = Queue(256), []
    for _ in range(40):
        given.append(request(*(draw.randint(1, 120) for _ in range(draw.randint(1, 30)))))
        queue.add(given[-1])
    batches = everything(queue)
    taken = [item for batch in batches for item in batch]
    assert len(set(taken)) == len(taken) == sum(len(one.documents) for one in given)
    for batch in batches:
        lengths = [one.lengths[index] for one, index in batch]
        assert max(lengths) * len(lengths) <= 256
    assert (queue.documents, queue.tokens) == (0, 0)


def test_a_batch_holds_documents_of_several_requests():
    queue = Queue(1000)
    for _ in range(5):
        queue.add(request(20))
    assert len(queue.take().parts) == 5


def test_a_document_beyond_the_budget_runs_alone():
    queue = Queue(100)
    queue.add(request(300, 10))
    assert [[one.lengths[index] for one, index in batch] for batch in everything(queue)] == [[300], [10]]


def test_nobody_starves():
    """A long document is served in its turn, however many short ones come after and suit each other better."""
    queue = Queue(400)
    queue.add(request(10))
    long = request(400)
    queue.add(long)
    for _ in range(2):
        queue.add(request(*[10] * 100))
        served = [part.request for part in queue.take().parts]
    assert served == [long]


def test_a_large_request_lets_others_in_between():
    queue = Queue(100)
    large, small = request(*[50] * 40), request(3)
    queue.add(large)
    queue.add(small)
    first, second = queue.take(), queue.take()
    assert [part.request for part in first.parts] == [large]
    assert small in [part.request for part in second.parts]


def test_what_is_dropped_does_not_run():
    queue = Queue(100)
    stays, leaves = request(5, 6), request(5, 60)
    queue.add(leaves)
    queue.add(stays)
    queue.drop(leaves)
    assert (queue.documents, queue.tokens) == (2, 11)
    assert {one for batch in everything(queue) for one, _ in batch} == {stays}
    queue.add(stays := request(4))
    assert queue.drop_all() == [stays] and not queue
