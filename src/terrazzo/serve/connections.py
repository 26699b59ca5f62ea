"""Connections whose headers come too slowly, or never end, are closed; what is no HTTP is told so as all errors are."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from terrazzo.serve.errors import ApiError
from terrazzo.serve.limits import MAX_HEADER_BYTES

#: Seconds from the opening of a connection, or from the first byte of a later request, to the end of its headers.
HEADER_SECONDS = 30.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection with an end to its patience: 408 after `HEADER_SECONDS`, 431 when headers go on and on.

    WebSockets are refused; other upgrades that a client offers are passed over, and its request answered.
    """

    url = b""
    _due: asyncio.TimerHandle | None = None
    _read = 0

    def connection_made(self, transport: Any) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._due is not None:
            if self._read > MAX_HEADER_BYTES:
                self._refuse(_too_large())
                return
            self._read += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        super().on_message_begin()
        if self._due is None:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._headers_are_there()
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            self.handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._headers_are_there()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called where the parser gives up."""
        if len(self.url) > MAX_HEADER_BYTES:
            self._refuse(_too_large())
        else:
            self._refuse(ApiError(400, "this is no HTTP/1.1 request, or its headers contradict each other"))

    def handle_websocket_upgrade(self) -> None:
        """Called when a client would rather speak WebSocket."""
        self._refuse(ApiError(400, "WebSockets are not served here: send a plain HTTP request"))

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() == b"websocket"

    def _unsupported_upgrade_warning(self) -> None:
        """HTTP/2 is offered with every request of some clients: nothing to warn of."""

    def _expect_headers(self) -> None:
        self._read, self._due = 0, self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _headers_are_there(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_slow(self) -> None:
        self._refuse(ApiError(408, f"the headers took longer than {HEADER_SECONDS:.0f} s to arrive"))

    def _refuse(self, error: ApiError) -> None:
        """Answer what is no request yet, and close."""
        if self.transport.is_closing():
            return
        body = orjson.dumps(error.body())
        head = f"HTTP/1.1 {error.status} {error.code}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def _too_large() -> ApiError:
    return ApiError(431, f"the headers have more than {MAX_HEADER_BYTES:,} bytes")
