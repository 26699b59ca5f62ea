"""Many clients of an HTTP server in one light process; replies are kept, and checked once the clock has stopped."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import uvloop

HOST = "127.0.0.1"
#: A reply that takes longer counts as a hang.
PATIENCE = 60.0
T = TypeVar("T")


class Reply(NamedTuple):
    """Status, header lines and body of one reply."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The value of a header line; None where there is none."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None


class Connection(asyncio.Protocol):
    """One keep-alive connection that has at most one request under way."""

    def __init__(self) -> None:
        self.buffer, self.needed = bytearray(), 0
        self.head = b""
        self.reply: asyncio.Future[Reply] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: ends the wait once the reply is whole."""
        self.buffer += data
        if not self.head:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self.head, self.buffer, self.needed = bytes(head), rest, _content_length(head)
        if len(self.buffer) >= self.needed and self.reply is not None and not self.reply.done():
            status = int(self.head[9:12])
            self.reply.set_result(Reply(status, self.head, bytes(self.buffer)))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(ConnectionResetError("the server closed the connection without a reply"))

    async def ask(self, request: bytes) -> Reply:
        """Send the bytes of a request, and wait for the reply.

        Raises:
            ConnectionError: the connection ended first.
            TimeoutError: nothing came for `PATIENCE` seconds.
        """
        assert self.transport is not None
        if self.transport.is_closing():
            raise ConnectionResetError("the server has closed the connection")
        self.buffer, self.head = bytearray(), b""
        self.reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(PATIENCE):
            return await self.reply

    def close(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()


def _content_length(head: bytes | bytearray) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    if head[9:12] in (b"204", b"304"):
        return 0
    raise ValueError(f"a reply without a length: {bytes(head)[:200]!r}")


async def connect(port: int) -> Connection:
    """A new connection to this machine."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    return connection


async def ask_once(port: int, request: bytes) -> Reply:
    """One request over a connection of its own."""
    connection = await connect(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode()


def post(path: str, body: Any, headers: str = "content-type: application/json\r\n") -> bytes:
    """The bytes of a POST; a body that is not bytes yet is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data


@dataclass
class Load:
    """What came of many requests.

    Args:
        wanted: replies after which clients stop; it may be changed meanwhile.
        replies: index of the request and its reply, None where the connection ended without one, as they came.
        latencies: seconds of each.
        seconds: from the first request to the last of those that were asked for.
        probes: seconds of each GET /health/live meanwhile.
        cpu_seconds: of this process, the clients.
    """

    wanted: int
    replies: list[tuple[int, Reply | None]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    probes: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0


async def load(
    port: int, requests: Sequence[bytes], clients: int, count: int, *, probe: bool = False, into: Load | None = None
) -> Load:
    """`clients` connections, each with one request under way, until `count` have been answered.

    The requests are taken in order, again and again. Clients go on until the count is reached, so that the server is
    under full load to the end; all replies are waited for.

    Args:
        probe: ask /health/live 50 times a second, too.
        into: is filled; a new one otherwise.
    """
    order, done = itertools.count(), Load(count) if into is None else into
    connections = await asyncio.gather(*(connect(port) for _ in range(clients)))
    watch = asyncio.create_task(_probe(port, done.probes)) if probe else None
    cpu, begin = time.process_time(), time.perf_counter()

    async def client(connection: Connection) -> None:
        while len(done.replies) < done.wanted:
            index = next(order) % len(requests)
            sent = time.perf_counter()
            try:
                reply = await connection.ask(requests[index])
            except (ConnectionError, TimeoutError):
                reply, connection = None, await connect(port)
            now = time.perf_counter()
            done.replies.append((index, reply))
            done.latencies.append(now - sent)
            if len(done.replies) == count:
                done.seconds = now - begin
        connection.close()

    await asyncio.gather(*map(client, connections))
    done.cpu_seconds = time.process_time() - cpu
    if watch is not None:
        watch.cancel()
    return done


async def _probe(port: int, seconds: list[float], every: float = 0.02) -> None:
    connection = await connect(port)
    while True:
        begin = time.perf_counter()
        reply = await connection.ask(get("/health/live"))
        seconds.append(time.perf_counter() - begin)
        if reply.status != 200:
            raise RuntimeError(f"/health/live answers {reply.status}")
        await asyncio.sleep(every)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the fast event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def vectors(reply: Reply) -> np.ndarray:
    """The vectors in a reply in the form of OpenAI, `(N, D)`, in the order of their `index`."""
    items = sorted(reply.json()["data"], key=lambda item: item["index"])
    return np.stack([_vector(item["embedding"]) for item in items])


def _vector(value: str | list[float]) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4")
    return np.asarray(value, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Replies against what each should have been.

    Args:
        lost: requests without a reply, or with another status than 200.
        swapped: replies that are nearer to the vector of another text, or far from their own.
        deviation: the greatest distance of a number from the expected one.
        statuses: how many of each.
    """

    lost: int
    swapped: int
    deviation: float
    statuses: dict[str, int]


def check(done: Load, expected_ND: np.ndarray) -> Checked:
    """Hold the vector of every reply to the expected one of its text; all vectors have length 1."""
    statuses: dict[str, int] = {}
    good = []
    for index, reply in done.replies:
        status = str(reply.status) if reply else "no reply"
        statuses[status] = statuses.get(status, 0) + 1
        if reply and reply.status == 200:
            good.append((index, vectors(reply)[0]))
    swapped, deviation = 0, 0.0
    if good:
        own_N, got_ND = np.asarray([index for index, _ in good]), np.stack([vector for _, vector in good])
        cosines = got_ND @ expected_ND.T
        nearest = cosines.argmax(1) == own_N
        swapped = int((~nearest | (cosines[np.arange(len(own_N)), own_N] < 0.999)).sum())
        deviation = float(np.abs(got_ND - expected_ND[own_N]).max())
    return Checked(lost=len(done.replies) - len(good), swapped=swapped, deviation=deviation, statuses=statuses)
