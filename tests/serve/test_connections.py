from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket

import pytest
import uvicorn

from terrazzo.serve import connections
from terrazzo.serve.connections import Connection


async def slow_app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.15)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def serving():
    """The port of a server whose connections are ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(slow_app, http=Connection, lifespan="off", log_config=None))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def said(port, *parts, pause=0.0):
    """What the server says to some bytes, and whether it then closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer, closed = b"", False
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(0.5):
            while piece := await reader.read(65536):
                answer += piece
        closed = True
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    writer.transport.abort()
    return answer, closed


GOOD = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize("beginning", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: he"], ids=["nothing", "method", "header"])
def test_headers_that_do_not_come_end_the_connection(monkeypatch, beginning):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)

    async def check():
        async with serving() as port:
            answer, closed = await said(port, beginning)
            assert closed
            assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer

    asyncio.run(check())


def test_the_second_request_of_a_connection_has_no_more_time(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)

    async def check():
        async with serving() as port:
            answer, closed = await said(port, GOOD + b"{}", b"GET /", pause=0.25)
            assert closed
            assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer

    asyncio.run(check())


def test_bodies_and_answers_may_take_longer(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)

    async def check():
        async with serving() as port:
            answer, closed = await said(port, GOOD, b"{", b"}", pause=0.15)
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok") and not closed

    asyncio.run(check())


def test_headers_without_end_are_refused_before_they_end():
    async def check():
        async with serving() as port:
            answer, closed = await said(port, b"GET / HTTP/1.1\r\nx: ", *[b"a" * 8192] * 40, pause=0.002)
            assert closed
            assert answer.startswith(b"HTTP/1.1 431 ") or not answer  # a reset may overtake the answer

    asyncio.run(check())


def test_a_large_body_in_one_piece_with_its_headers_is_no_large_header():
    async def check():
        async with serving() as port:
            head = GOOD.replace(b"length: 2", b"length: 200000")
            answer, _ = await said(port, head + b" " * 200_000, head + b" " * 200_000, pause=0.25)
            assert answer.count(b"HTTP/1.1 200 ") == 2

    asyncio.run(check())


NO_HTTP = {
    "no method": b"FOO / HTTP/1.1\r\nhost: here\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "two lengths": GOOD.replace(b"content-length: 2", b"content-length: 2\r\ncontent-length: 3"),
    "no path": b"CONNECT here:80 HTTP/1.1\r\nhost: here\r\n\r\n",
    "a long path": b"GET /" + b"a" * 80_000 + b" HTTP/1.1\r\nhost: here\r\n\r\n",
    "a WebSocket": GOOD[:-2] + b"connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\r\n{}",
    "half a WebSocket": b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 9\r\n\r\n",
}


@pytest.mark.parametrize("request_", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_plain_http_is_answered_as_all_errors_are(request_):
    async def check():
        async with serving() as port:
            answer, closed = await said(port, request_)
            head, _, body = answer.partition(b"\r\n\r\n")
            status = 431 if len(request_) > 80_000 else 400
            assert closed and head.startswith(f"HTTP/1.1 {status} ".encode()), answer
            assert b"content-type: application/json" in head
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == ("headers_too_large" if status == 431 else "bad_request")

    asyncio.run(check())


def test_an_offer_of_http_2_is_passed_over_in_silence(caplog):
    async def check():
        async with serving() as port:
            offer = GOOD[:-2] + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n\r\n{}"
            answer, closed = await said(port, offer, offer, pause=0.25)
            assert answer.count(b"HTTP/1.1 200 ") == 2 and not closed

    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        asyncio.run(check())
    assert not caplog.records
