"""The queue in front of an encoder, and the threads that run it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from terrazzo.runtime import Runtime, share_threads
from terrazzo.serve.batching import Batch, Part, Queue, Request
from terrazzo.tasks.forward import Forward, run
from terrazzo.tasks.task import Encoded

log = logging.getLogger("terrazzo.serve")
#: Weight of the last batch in the running mean of the throughput.
_NEWEST = 0.2


class QueueFull(RuntimeError):
    """Too much is waiting: come back after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; come back in {retry_after:.0f} s")
        self.retry_after = retry_after


class Draining(RuntimeError):
    """The server is about to stop and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """What one batch was.

    Args:
        documents, requests: in the batch; tokens: of the documents; padded: with padding, where the
            runtime pads.
        waits: seconds that each request waited for this batch.
        seconds: that the batch ran.
        queued_documents, queued_tokens: left waiting when it ended.
        failed: documents that could not be answered.
    """

    documents: int
    requests: int
    tokens: int
    padded: int
    waits: tuple[float, ...]
    seconds: float
    queued_documents: int
    queued_tokens: int
    failed: int


#: Is told of every batch, on the thread that ran it.
Observer = Callable[[BatchStats], None]


class Engine:
    """Runs what several heads ask of one encoder, in batches that form while others run.

    Args:
        runtime: called by `runtime.streams` threads.
        max_batch_tokens: of a batch, padding included where the runtime pads, or one document where it is longer; None
            takes the runtime's.
        max_queue_tokens: tokens that may wait; a request that finds the queue empty is always taken.
        max_wait: seconds for which a batch with room left waits for company.
        threads: of PyTorch, which the streams share; None takes as many as it has.
        observe: is told of every batch.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_batch_tokens: int | None = None,
        max_queue_tokens: int = 262_144,
        max_wait: float = 0.0,
        threads: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.runtime, self.max_queue_tokens, self.max_wait = runtime, max_queue_tokens, max_wait
        self.max_batch_tokens = max_batch_tokens or runtime.batch_tokens
        self._queue, self._observe = Queue(self.max_batch_tokens, runtime.pads), observe
        self._cores = threads or torch.get_num_threads()
        self._changed, self._open, self._rate = threading.Condition(), True, 0.0
        names = [f"{runtime.name}-{number}" for number in range(runtime.streams)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def queued_documents(self) -> int:
        return self._queue.documents

    @property
    def queued_tokens(self) -> int:
        return self._queue.tokens

    async def submit(self, forward: Forward, documents: Sequence[Encoded]) -> list[Any]:
        """What `forward` makes of each document, in their order. A caller that is cancelled leaves the queue.

        Raises:
            QueueFull: too much is waiting; it says when to come back.
            Draining: the engine is about to stop.
            Exception: whatever running these documents raised.
        """
        if not documents:
            return []
        loop = asyncio.get_running_loop()
        request = Request(forward, documents, loop, loop.create_future())
        with self._changed:
            self._admit(request)
            self._changed.notify_all()
        try:
            return await request.future
        except asyncio.CancelledError:
            with self._changed:
                self._queue.drop(request)
            raise

    def retry_after(self) -> float:
        """Seconds in which what is waiting will have run, by the throughput of the last batches; at least 1."""
        return max(1.0, self._queue.tokens / self._rate) if self._rate else 1.0

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, run what is waiting, end the threads; whether all of it ended within `seconds`.

        What is left is answered with `Draining`.
        """
        with self._changed:
            self._open = False
            self._changed.notify_all()
        await asyncio.to_thread(self._join, time.monotonic() + seconds)
        with self._changed:
            left = self._queue.drop_all()
        for request in left:
            request.error = Draining()
        _deliver(left)
        return not left and not any(thread.is_alive() for thread in self._threads)

    def _admit(self, request: Request) -> None:
        if not self._open:
            raise Draining
        if self._queue and self._queue.tokens + sum(request.lengths) > self.max_queue_tokens:
            raise QueueFull(self.retry_after())
        self._queue.add(request)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        share_threads(self._cores, self.runtime.streams)
        while (batch := self._next()) is not None:
            began = time.monotonic()
            self._run(batch.parts)
            self._finish(batch, began)

    def _next(self) -> Batch | None:
        """The next batch, waited for; None when the engine ends."""
        with self._changed:
            while True:
                if not self._queue:
                    if not self._open:
                        return None
                    self._changed.wait()
                    continue
                wait = self._queue.oldest + self.max_wait - time.monotonic()
                if wait <= 0 or not self._open or self._queue.tokens >= self.max_batch_tokens:
                    return self._queue.take()
                self._changed.wait(wait)

    def _run(self, parts: Sequence[Part]) -> None:
        """Run documents together; where that fails each request alone, so that none fails for another's sake."""
        documents = [document for part in parts for document in part.documents]
        forwards = [part.request.forward for part in parts for _ in part.indices]
        try:
            values = iter(run(self.runtime, documents, forwards))
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._run([part])
            else:
                parts[0].request.error = error
            return
        for part in parts:
            for index in part.indices:
                part.request.results[index] = next(values)

    def _finish(self, batch: Batch, began: float) -> None:
        seconds, lengths = time.monotonic() - began, batch.lengths
        done, failed = [], 0
        with self._changed:
            for part in batch.parts:
                request = part.request
                request.missing -= len(part.indices)
                if request.error is not None:
                    failed += len(part.indices)
                    self._queue.drop(request)
                if request.error is not None or not request.missing:
                    done.append(request)
            self._measure(sum(lengths) / max(seconds, 1e-9))
            waiting = self._queue.documents, self._queue.tokens
        _deliver(done)
        if self._observe is not None:
            stats = BatchStats(
                documents=len(lengths),
                requests=len(batch.parts),
                tokens=sum(lengths),
                padded=len(lengths) * max(lengths) if self.runtime.pads else sum(lengths),
                waits=tuple(began - part.request.arrived for part in batch.parts),
                seconds=seconds,
                queued_documents=waiting[0],
                queued_tokens=waiting[1],
                failed=failed,
            )
            self._tell(self._observe, stats)

    def _measure(self, rate: float) -> None:
        rate *= len(self._threads)
        self._rate = rate if not self._rate else (1 - _NEWEST) * self._rate + _NEWEST * rate

    def _tell(self, observe: Observer, stats: BatchStats) -> None:
        try:
            observe(stats)
        except Exception:
            log.exception("statistics of a batch could not be recorded")


def _deliver(requests: Sequence[Request]) -> None:
    """Wake the event loops that wait for these requests, each once."""
    for loop in {request.loop for request in requests}:
        own = [request for request in requests if request.loop is loop]
        try:
            loop.call_soon_threadsafe(_resolve, own)
        except RuntimeError:  # the loop has closed: nobody waits any more
            log.warning("%d answers came after the server had stopped", len(own))


def _resolve(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.future.done():
            continue
        if request.error is not None:
            request.future.set_exception(request.error)
        else:
            request.future.set_result(request.results)
