"""What waits for an encoder, and which documents run together."""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from terrazzo.tasks.forward import Forward
from terrazzo.tasks.task import Encoded

#: Documents that are looked at for company for the one whose turn it is.
LOOK_AHEAD = 512
#: Padding that a batch may have: a share of its tokens, and a number of tokens below which another batch costs more.
PADDING_SHARE, PADDING_TOKENS = 0.25, 256


def company(lengths: Sequence[int], first: int, budget: int) -> list[int]:
    """The documents that run with document `first`, itself included, where shorter ones are padded: its neighbours in
    length, nearest first, as long as the cost, longest x number, is within `budget` and little of it is padding.

    A document beyond the budget runs alone.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(first)
    real = longest = lengths[first]
    while True:
        count, options = high - low + 2, []
        if low > 0:
            shorter = lengths[order[low - 1]]
            options.append((longest * count, real + shorter, longest, low - 1, high))
        if high + 1 < len(order):
            longer = lengths[order[high + 1]]
            options.append((longer * count, real + longer, longer, low, high + 1))
        options = [option for option in options if _worth(option[0], option[1], budget)]
        if not options:
            return order[low : high + 1]
        _, real, longest, low, high = min(options, key=lambda option: option[0] - option[1])


def unpadded_company(lengths: Sequence[int], budget: int) -> list[int]:
    """The documents that run with the first where nothing is padded: those after it, in order, that fit `budget`."""
    chosen, room = [0], budget - lengths[0]
    for index, length in enumerate(lengths[1:], 1):
        if length <= room:
            chosen.append(index)
            room -= length
    return chosen


def _worth(padded: int, real: int, budget: int) -> bool:
    return padded <= budget and padded - real <= PADDING_TOKENS + PADDING_SHARE * real


class Request:
    """Documents that came together, for one forward; `waiting` are those that have not run, shortest first."""

    def __init__(
        self, forward: Forward, documents: Sequence[Encoded], loop: AbstractEventLoop, future: Future[list[Any]]
    ) -> None:
        self.forward, self.documents, self.loop, self.future = forward, documents, loop, future
        self.lengths = [len(document.ids) for document in documents]
        self.waiting = sorted(range(len(documents)), key=self.lengths.__getitem__)
        self.results: list[Any] = [None] * len(documents)
        self.missing = len(documents)
        self.error: Exception | None = None
        self.arrived = time.monotonic()


@dataclass(frozen=True)
class Part:
    """The documents of one request that run in a batch."""

    request: Request
    indices: list[int]

    @property
    def documents(self) -> list[Encoded]:
        return [self.request.documents[index] for index in self.indices]


@dataclass(frozen=True)
class Batch:
    """What runs together."""

    parts: list[Part]

    @property
    def lengths(self) -> list[int]:
        return [part.request.lengths[index] for part in self.parts for index in part.indices]


class Queue:
    """Requests in the order of their turns. The longest document of the first is always served next, and its request
    goes to the end of the line with what is left of it: no request waits for more than one batch of each before it.

    Not safe for threads: the engine holds a lock.

    Args:
        budget: tokens of a batch.
        pads: whether padding counts as tokens.
    """

    def __init__(self, budget: int, pads: bool = True) -> None:
        self.budget, self.pads = budget, pads
        self.documents = self.tokens = 0
        self._line: deque[Request] = deque()

    def __bool__(self) -> bool:
        return self.documents > 0

    @property
    def oldest(self) -> float:
        """When the request whose turn it is arrived."""
        return self._line[0].arrived

    def add(self, request: Request) -> None:
        """Put a request at the end of the line."""
        self._line.append(request)
        self.documents += len(request.waiting)
        self.tokens += sum(request.lengths)

    def drop(self, request: Request) -> None:
        """Forget what has not run of a request."""
        self._left(request, request.waiting)
        request.waiting = []
        self._line = deque(other for other in self._line if other.waiting)

    def drop_all(self) -> list[Request]:
        """Forget everything; the requests that waited."""
        dropped = list(self._line)
        for request in dropped:
            self.drop(request)
        return dropped

    def take(self) -> Batch:
        """The next batch; there must be something waiting."""
        head = self._line[0]
        seen: list[tuple[Request, int]] = []
        for request in self._line:
            room = LOOK_AHEAD - len(seen)
            if room <= 0:
                break
            seen += [(request, index) for index in request.waiting[: -room - 1 : -1]]
        lengths = [request.lengths[index] for request, index in seen]
        together = company(lengths, 0, self.budget) if self.pads else unpadded_company(lengths, self.budget)
        chosen: dict[Request, list[int]] = {}
        for place in sorted(together):
            request, index = seen[place]
            chosen.setdefault(request, []).append(index)
        for request, indices in chosen.items():
            self._left(request, indices)
            gone = set(indices)
            request.waiting = [index for index in request.waiting if index not in gone]
        self._line.rotate(-1)
        self._line = deque(request for request in self._line if request.waiting)
        assert head in chosen
        return Batch([Part(request, indices) for request, indices in chosen.items()])

    def _left(self, request: Request, indices: Sequence[int]) -> None:
        self.documents -= len(indices)
        self.tokens -= sum(request.lengths[index] for index in indices)
