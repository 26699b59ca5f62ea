"""What a request may be: its key, its headers, its body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import chain
from typing import Any

from terrazzo.serve.errors import ApiError
from terrazzo.serve.keys import Keys

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

#: Bytes of a request's headers.
MAX_HEADER_BYTES = 32_768
#: Seconds that a body may take to arrive.
BODY_SECONDS = 30.0


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def check_key(keys: Keys, authorization: bytes | None) -> None:
    """Let in who knows a key, where there are keys.

    Raises:
        ApiError: 401.
    """
    if keys.open_to(authorization):
        return
    what = "no API key" if authorization is None else "the API key is not known here"
    message = f"{what}: send the header Authorization: Bearer KEY"
    raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})


def checked_headers(scope: Scope) -> Headers:
    """A request's headers by name, in small letters.

    Raises:
        ApiError: 431, they have too many bytes.
    """
    if sum(map(len, chain.from_iterable(scope["headers"]))) > MAX_HEADER_BYTES:
        message = f"the headers have more than {MAX_HEADER_BYTES:,} bytes"
        raise ApiError(431, message, headers={"Connection": "close"})
    return dict(scope["headers"])


def check_json(content_type: bytes | None) -> None:
    """Refuse bodies of another type, which pages of other sites could send without asking the browser.

    Raises:
        ApiError: 415.
    """
    if content_type == b"application/json":
        return
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        got = kind.decode("latin-1") or "none"
        raise ApiError(415, f"the body must be JSON: send the header Content-Type: application/json (got {got:.60})")


async def read_body(receive: Receive, declared: bytes | None, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes, whether its length was declared or not.

    Raises:
        ApiError: 413 too long, 408 too slow.
        ClientGone: the client left before it had sent everything.
    """
    if declared is not None and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            parts, size, more = [], 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                parts.append(part)
                size, more = size + len(part), message.get("more_body", False)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError:
        late = f"the body took longer than {BODY_SECONDS:.0f} s to arrive"
        raise ApiError(408, late, headers={"Connection": "close"}) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"the body has more than {limit:,} bytes: send fewer texts a request, or raise --max-body-mb"
    return ApiError(413, message, headers={"Connection": "close"})
