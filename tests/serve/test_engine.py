from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import torch

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.serve.engine import Draining, Engine, QueueFull
from terrazzo.tasks.task import Encoded


class Gate:
    """A runtime that notes what it is asked for and waits until it may go on."""

    name, precision, config = "gate", "fp32", EncoderConfig(vocab_size=100, width=32, depth=1, num_heads=1)
    batch_tokens, pads, device = 64, True, torch.device("cpu")

    def __init__(self, streams=1, is_open=True):
        self.streams, self.seen, self.started = streams, [], threading.Semaphore(0)
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, batch, select_M=None):
        self.seen.append(batch.lengths)
        self.started.release()
        assert self.gate.wait(20)
        return batch.tokens_T[:, None].float()


def first_ids(encoder, batch):
    """The first id of each document; an id of 99 cannot be run."""
    states_TD = encoder(batch)
    if (batch.tokens_T == 99).any():
        raise ValueError("99")
    return states_TD[batch.cu_seqlens[:-1].long(), 0].tolist()


def sums(encoder, batch):
    return [float(part.sum()) for part in torch.split(encoder(batch)[:, 0], list(batch.lengths))]


def documents(*lengths, start=0):
    return [Encoded(ids=np.full(length, start + place)) for place, length in enumerate(lengths)]


def engine(runtime=None, **options):
    return Engine(runtime or Gate(), **options)


async def blocked(runtime, running):
    """A task that occupies the runtime's one stream until its gate opens."""
    task = asyncio.create_task(running.submit(first_ids, documents(2)))
    await asyncio.to_thread(runtime.started.acquire)
    return task


def test_a_request_larger_than_a_batch_is_split_and_joined_in_order():
    async def main():
        runtime = Gate(streams=2)
        running = engine(runtime)
        lengths = np.random.default_rng(0).integers(1, 40, 90)
        values = await running.submit(first_ids, documents(*lengths))
        assert values == [float(place) for place in range(90)]
        assert len(runtime.seen) > 5
        assert all(max(batch) * len(batch) <= 64 for batch in runtime.seen)
        assert await running.submit(first_ids, []) == []
        assert await running.drain(10)

    asyncio.run(main())


def test_what_waits_runs_together_and_each_head_sees_its_own():
    async def main():
        runtime = Gate(is_open=False)
        running = engine(runtime)
        first = await blocked(runtime, running)
        asked = [(first_ids, documents(3, start=7)), (sums, documents(3, start=5)), (first_ids, documents(4, start=8))]
        tasks = [asyncio.create_task(running.submit(*one)) for one in asked]
        await asyncio.sleep(0)
        assert running.queued_documents == 3 and running.queued_tokens == 10
        runtime.gate.set()
        assert await asyncio.gather(*tasks) == [[7.0], [15.0], [8.0]]
        await first
        assert [sorted(batch) for batch in runtime.seen] == [[2], [3, 3, 4]]
        assert await running.drain(10)

    asyncio.run(main())


def test_who_leaves_is_not_run():
    async def main():
        runtime = Gate(is_open=False)
        running = engine(runtime)
        first = await blocked(runtime, running)
        leaves = asyncio.create_task(running.submit(first_ids, documents(5, 5, 40)))
        stays = asyncio.create_task(running.submit(first_ids, documents(3, start=1)))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert leaves.cancelled() and running.queued_documents == 1
        first.cancel()  # while it runs: the batch ends, nobody waits for it
        runtime.gate.set()
        assert await stays == [1.0]
        assert runtime.seen == [(2,), (3,)]
        assert await running.drain(10)

    asyncio.run(main())


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def main():
        runtime = Gate(is_open=False)
        running = engine(runtime, max_queue_tokens=10)
        first = await blocked(runtime, running)
        large = asyncio.create_task(running.submit(first_ids, documents(30)))  # nothing waits: it is taken
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refused:
            await running.submit(first_ids, documents(1))
        assert refused.value.retry_after >= 1
        running._rate = 10.0
        assert running.retry_after() == 3.0
        runtime.gate.set()
        assert (await first, await large) == ([0.0], [0.0])
        assert await running.submit(first_ids, documents(1)) == [0.0]
        assert await running.drain(10)

    asyncio.run(main())


def test_a_document_that_cannot_be_run_fails_its_own_request_alone():
    async def main():
        runtime, stats = Gate(is_open=False), []
        running = engine(runtime, observe=stats.append)
        first = await blocked(runtime, running)
        bad = [Encoded(ids=np.full(60, 99)), *documents(40, 3)]
        tasks = [
            asyncio.create_task(running.submit(first_ids, one)) for one in (documents(2, start=4), bad, documents(3))
        ]
        await asyncio.sleep(0)
        runtime.gate.set()
        values = await asyncio.gather(*tasks, return_exceptions=True)
        assert values[0] == [4.0] and values[2] == [0.0]
        assert isinstance(values[1], ValueError)
        await first
        assert await running.submit(first_ids, documents(1)) == [0.0], "the thread lives on"
        assert running.queued_documents == 0
        assert not any(40 in batch for batch in runtime.seen), "what is left of a request that failed was run"
        assert await running.drain(10)
        assert sum(one.failed for one in stats) >= 1

    asyncio.run(main())


def test_an_error_is_given_as_it_was_raised():
    def refuses(encoder, batch):
        raise InputError("no")

    async def main():
        running = engine()
        with pytest.raises(InputError, match="no"):
            await running.submit(refuses, documents(1))
        assert await running.drain(10)

    asyncio.run(main())


def test_draining_ends_what_waits_and_takes_nothing_new():
    async def main():
        runtime = Gate(is_open=False)
        running = engine(runtime)
        first = await blocked(runtime, running)
        second = asyncio.create_task(running.submit(first_ids, documents(3, start=6)))
        await asyncio.sleep(0)
        draining = asyncio.create_task(running.drain(20))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await running.submit(first_ids, documents(1))
        runtime.gate.set()
        assert (await first, await second) == ([0.0], [6.0])
        assert await draining
        assert not any(thread.is_alive() for thread in running._threads)

    asyncio.run(main())


def test_what_does_not_end_in_time_is_told_so():
    async def main():
        runtime = Gate(is_open=False)
        running = engine(runtime)
        first = await blocked(runtime, running)
        second = asyncio.create_task(running.submit(first_ids, documents(3)))
        await asyncio.sleep(0)
        assert not await running.drain(0)
        with pytest.raises(Draining):
            await second
        runtime.gate.set()
        assert await first == [0.0], "what was running still ends"

    asyncio.run(main())


def test_statistics_say_what_ran():
    async def main():
        runtime, stats = Gate(is_open=False), []
        running = engine(runtime, observe=stats.append)
        first = await blocked(runtime, running)
        tasks = [asyncio.create_task(running.submit(first_ids, documents(*lengths))) for lengths in ((4, 6), (5,))]
        await asyncio.sleep(0)
        runtime.gate.set()
        await asyncio.gather(first, *tasks)
        assert await running.drain(10)
        one, two = stats
        assert (one.documents, one.requests, one.tokens, one.padded) == (1, 1, 2, 2)
        assert (two.documents, two.requests, two.tokens, two.padded, two.failed) == (3, 2, 15, 18, 0)
        assert (one.queued_documents, one.queued_tokens) == (3, 15)
        assert len(two.waits) == 2 and min(two.waits) >= 0 and two.seconds > 0

    asyncio.run(main())


def test_a_broken_hook_stops_nothing():
    def breaks(stats):
        raise RuntimeError

    async def main():
        running = engine(observe=breaks)
        for _ in range(3):
            assert await running.submit(first_ids, documents(1)) == [0.0]
        assert await running.drain(10)

    asyncio.run(main())


def test_a_batch_with_room_waits_for_company_if_told_to():
    async def main():
        runtime = Gate()
        running = engine(runtime, max_wait=20.0)
        first = asyncio.create_task(running.submit(first_ids, documents(32)))
        await asyncio.sleep(0.05)
        assert runtime.seen == []
        second = asyncio.create_task(running.submit(first_ids, documents(32, start=1)))
        assert await asyncio.gather(first, second) == [[0.0], [1.0]]
        assert runtime.seen == [(32, 32)], "and no longer than until it is full"
        assert await running.drain(10)

    asyncio.run(main())
