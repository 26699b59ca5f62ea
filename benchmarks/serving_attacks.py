"""What is done to a running server, and what went wrong: each check gives a `Finding`."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving_bodies import broken_http, large_requests, requests
from benchmarks.serving_client import HOST, Connection, Load, Reply, ask_once, connect, get, load, post, vectors
from benchmarks.serving_process import Server

#: Names of the problems that are kept in the result.
SHOWN = 20


@dataclass(kw_only=True)
class Finding:
    """What came of one check.

    Args:
        tried: requests, connections, whatever was counted.
        problems: what should not have happened, in words.
    """

    name: str
    what: str
    tried: int = 0
    problems: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def expect(self, good: bool, problem: str) -> None:
        """Note `problem` unless `good`."""
        if not good:
            self.problems.append(problem)


async def send_all(
    finding: Finding, port: int, named: Iterable[tuple[str, bytes]], clients: int, *, may_close: bool = False
) -> None:
    """Send requests over `clients` connections; every one must be answered, with a status below 500, as errors are.

    Args:
        may_close: whether closing the connection is an answer.
    """
    source, statuses = iter(named), Counter[str]()

    async def client() -> None:
        connection = await connect(port)
        for name, request in source:
            finding.tried += 1
            try:
                reply = await connection.ask(request)
            except TimeoutError:
                finding.problems.append(f"{name}: no answer to {request[:200]!r}")
                connection = await _again(connection, port)
                continue
            except ConnectionError:
                statuses["closed"] += 1
                finding.expect(may_close, f"{name}: closed without an answer to {request[:200]!r}")
                connection = await _again(connection, port)
                continue
            statuses[str(reply.status)] += 1
            finding.expect(reply.status < 500, f"{name}: {reply.status} to {request[:300]!r}")
            page = may_close and reply.status < 400
            finding.expect(page or _well_formed(reply), f"{name}: {reply.status} with the body {reply.body[:200]!r}")
            if (reply.header("connection") or "").lower() == "close" or may_close:
                connection = await _again(connection, port)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    finding.details["statuses"] = dict(sorted(statuses.items()))


async def _again(connection: Connection, port: int) -> Connection:
    connection.close()
    return await connect(port)


def _well_formed(reply: Reply) -> bool:
    """Success in JSON, or an error as OpenAI shapes it."""
    try:
        body = reply.json()
    except ValueError:
        return False
    return reply.status < 400 or {"message", "type", "param", "code"} <= set(body.get("error", {}))


async def malformed(port: int, count: int, models: dict[str, str | None]) -> Finding:
    """Thousands of malformed bodies."""
    finding = Finding(name="malformed", what="malformed bodies of our own")
    await send_all(finding, port, requests(count, models), 16)
    return finding


async def large(port: int, models: dict[str, str | None]) -> Finding:
    """Large bodies, while /health/live must answer."""
    finding = Finding(name="large", what="large bodies")
    probes: list[float] = []
    watch = asyncio.create_task(_watch(port, probes))
    await send_all(finding, port, large_requests(models), 2)
    watch.cancel()
    finding.details["slowest /health/live, s"] = max(probes)
    finding.expect(max(probes) < 1, f"/health/live took {max(probes):.1f} s meanwhile")
    return finding


async def broken(port: int) -> Finding:
    """What is no HTTP."""
    finding = Finding(name="broken HTTP", what="requests that are no HTTP, or lie about their length")
    await send_all(finding, port, ((n, r) for n, r in broken_http()), 1, may_close=True)
    return finding


async def _watch(port: int, seconds: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await ask_once(port, get("/health/live"))
        seconds.append(time.perf_counter() - begin)
        await asyncio.sleep(0.02)


_KILLED = """
import socket, sys, time
whole, half = (bytes.fromhex(line) for line in sys.stdin.read().split())
sockets = []
for number in range(40):
    one = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    one.sendall(half if number % 2 else whole)
    sockets.append(one)
print("sent", flush=True)
time.sleep(60)
"""


async def killed_clients(port: int, body: dict[str, Any], waiting: Callable[[str], float]) -> Finding:
    """A client process is killed with 40 requests under way: 20 large ones in the queue, 20 half sent.

    Args:
        waiting: the texts that wait, from /metrics.
    """
    finding = Finding(name="kill -9", what="requests of clients killed in mid-request", tried=40)
    request = post("/v1/embeddings", body)
    client = subprocess.Popen(
        [sys.executable, "-c", _KILLED, HOST, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(f"{request.hex()}\n{request[: len(request) // 2].hex()}".encode())
    client.stdin.close()
    await asyncio.to_thread(client.stdout.readline)
    await asyncio.sleep(0.3)
    before = waiting((await ask_once(port, get("/metrics"))).body.decode())
    client.send_signal(signal.SIGKILL)
    begin = time.perf_counter()
    await asyncio.to_thread(client.wait)
    client.stdout.close()
    reply = await ask_once(port, post("/v1/embeddings", {**body, "input": "and now me"}))
    seconds = time.perf_counter() - begin
    after = waiting((await ask_once(port, get("/metrics"))).body.decode())
    finding.expect(reply.status == 200, f"the next client gets {reply.status}")
    finding.expect(seconds < 5, f"the next client waits for {seconds:.1f} s")
    finding.expect(after == 0, f"{after:.0f} texts of nobody still wait")
    finding.details |= {"texts waiting before": before, "after": after, "seconds until the next answer": seconds}
    return finding


async def slow_clients(port: int, good: bytes, other_load: Callable[[], Any], seconds: float) -> Finding:
    """Clients that send a byte a second: 100 in their headers, 100 in their bodies; others must not notice.

    Args:
        other_load: starts the load of other clients, and gives what is wrong with its replies.
        seconds: for which the slow clients go on.
    """
    finding = Finding(name="slow clients", what="connections that send a byte a second", tried=200)
    head_end = good.index(b"\r\n\r\n") + 4
    closed: list[float] = []
    begin = time.perf_counter()

    async def slow(first: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(good[:first])
        reading = asyncio.create_task(reader.read())
        for byte in good[first:-1]:
            await asyncio.wait([reading], timeout=1)
            if reading.done() or time.perf_counter() - begin > seconds:
                break
            writer.write(bytes([byte]))
        if reading.done():
            closed.append(time.perf_counter() - begin)
        reading.cancel()
        writer.transport.abort()

    clients = [asyncio.create_task(slow(first)) for first in [4, head_end + 1] * 100]
    await asyncio.sleep(1)
    finding.problems += await other_load()
    await asyncio.gather(*clients, return_exceptions=True)
    finding.details |= {
        "closed by the server": len(closed),
        "after seconds": [min(closed, default=None), max(closed, default=None)],
        "seconds": seconds,
    }
    return finding


async def flood(port: int, connections: int, good: bytes) -> Finding:
    """Thousands of connections that send nothing; the next client must still be answered."""
    finding = Finding(name="flood", what="idle connections at once", tried=connections)
    opened: list[Connection] = []
    refused = 0
    for _ in range(connections):
        try:
            opened.append(await asyncio.wait_for(connect(port), 5))
        except (OSError, TimeoutError):
            refused += 1
    begin = time.perf_counter()
    for request in (get("/health/live"), good):
        try:
            reply = await ask_once(port, request)
            finding.expect(reply.status == 200, f"{reply.status} while {len(opened)} connections are open")
        except (OSError, TimeoutError) as error:
            finding.problems.append(f"{error!r} while {len(opened)} connections are open")
    finding.details |= {"opened": len(opened), "refused": refused, "seconds": time.perf_counter() - begin}
    for connection in opened:
        connection.close()
    await asyncio.sleep(0.5)
    reply = await ask_once(port, good)
    finding.expect(reply.status == 200, f"{reply.status} after the flood")
    return finding


async def full_queue(port: int, bodies: Sequence[bytes], count: int) -> Finding:
    """More than the queue holds: 429 with Retry-After, nothing else, and afterwards all is well."""
    finding = Finding(name="full queue", what="requests to a server with a short queue")
    done = await load(port, bodies, 64, count)
    statuses = Counter(str(reply.status) if reply else "no reply" for _, reply in done.replies)
    finding.tried = len(done.replies)
    finding.details["statuses"] = dict(statuses)
    finding.expect(set(statuses) == {"200", "429"}, f"statuses {dict(statuses)}")
    told = [reply.header("retry-after") for _, reply in done.replies if reply and reply.status == 429]
    finding.expect(all(value and value.isdigit() for value in told), "a 429 without a whole Retry-After")
    finding.details["retry-after"] = dict(Counter(map(str, told)))
    begin = time.perf_counter()
    reply = await ask_once(port, bodies[0])
    finding.expect(reply.status == 200, f"{reply.status} after the storm")
    finding.details["seconds until the next answer"] = time.perf_counter() - begin
    return finding


async def replaced_under_load(
    port: int, bodies: Sequence[bytes], swap: Callable[[], None], versions: Sequence[np.ndarray], swaps: int = 4
) -> Finding:
    """The model folder is replaced again and again while 64 clients ask; each reply is of one version, whole.

    The next replacement comes once 64 replies in a row are of the version before it.

    Args:
        bodies: requests of several texts each.
        versions: vectors `(requests, texts, D)` of the folder at first and after every other swap.
    """
    finding = Finding(name="reload", what="replies while the model folder is replaced")
    done = Load(10**9)
    running = asyncio.create_task(load(port, bodies, 64, done.wanted, into=done))
    waits = []
    for number in range(swaps + 1):
        begin = time.perf_counter()
        while time.perf_counter() - begin < 60:
            await asyncio.sleep(0.25)
            tail = [_version(index, reply, versions) for index, reply in done.replies[-64:]]
            if tail == [str(number % 2)] * 64:
                break
        waits.append(round(time.perf_counter() - begin, 2))
        if number < swaps:
            swap()
    done.wanted = 0
    await running
    kinds = [_version(index, reply, versions) for index, reply in done.replies]
    finding.tried = len(kinds)
    changes = sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    finding.details |= {
        "replies by version": dict(Counter(kinds)),
        "changes in order of arrival": changes,
        "swaps": swaps,
        "seconds until the last reply of the version before": waits[1:],
    }
    for kind in sorted(set(kinds) - {"0", "1"}):
        finding.problems.append(f"{kinds.count(kind)} replies: {kind}")
    finding.expect({"0", "1"} <= set(kinds), "one of the two versions never answered")
    tail = kinds[-64:]
    finding.expect(set(tail) == {str(swaps % 2)}, f"the last replies are of versions {dict(Counter(tail))}")
    return finding


def _version(index: int, reply: Reply | None, versions: Sequence[np.ndarray]) -> str:
    if reply is None:
        return "no reply"
    if reply.status != 200:
        return f"status {reply.status}"
    got_ND = vectors(reply)
    near = [bool(((got_ND * version[index]).sum(1) > 0.999).all()) for version in versions]
    return str(near.index(True)) if sum(near) == 1 else "a mixture of versions"


async def stopped_under_load(server: Server, bodies: Sequence[bytes]) -> Finding:
    """SIGTERM while 64 clients ask: what was sent before is answered, the rest is refused, and it ends with 0."""
    finding = Finding(name="SIGTERM", what="requests to a server that is told to stop")
    statuses, sent_before = Counter[str](), 0
    stopped: list[float] = []

    async def client(number: int) -> None:
        nonlocal sent_before
        connection = await connect(server.port)
        for turn in range(10**6):
            sent = time.perf_counter()
            try:
                status = str((await connection.ask(bodies[(number + 64 * turn) % len(bodies)])).status)
            except (ConnectionError, TimeoutError) as error:
                status = type(error).__name__
            # What crosses the signal on its way may find the connection closed, as with every HTTP server.
            before = not stopped or sent < stopped[0] - 0.05
            finding.tried += 1
            sent_before += before
            statuses[f"{status} {'before' if before else 'after'}"] += 1
            finding.expect(status == "200" or not before, f"{status} to a request sent before the signal")
            if status != "200":
                return

    clients = [asyncio.create_task(client(number)) for number in range(64)]
    await asyncio.sleep(2)
    stopped.append(time.perf_counter())
    server.process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    code = await asyncio.to_thread(server.process.wait, 60)
    finding.expect(code == 0, f"exit status {code}")
    finding.expect(not [s for s in statuses if s[0] == "5" and not s.startswith("503")], f"statuses {dict(statuses)}")
    finding.details |= {
        "statuses": dict(statuses),
        "sent before": sent_before,
        "seconds to stop": time.perf_counter() - stopped[0],
    }
    return finding
