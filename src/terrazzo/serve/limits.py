"""Who may ask, and how much: API keys, headers and bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from itertools import chain
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError
from terrazzo.serve.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

#: Bytes of a request's headers.
MAX_HEADER_BYTES = 32_768
#: Seconds that a body may take to arrive.
BODY_SECONDS = 30.0
#: Shorter keys can be guessed.
_SHORTEST_KEY = 8


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Keys:
    """The API keys that open a server; without any it is open.

    Only their hashes are kept, and a given key is compared with all of them in constant time.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """The keys of a file: one a line, blank lines and those that begin with # left out.

        Raises:
            InputError: the file cannot be read, holds no key, or one that is too short or not plain.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {path}: cannot be read: {error}") from None
        keys = {number: line.strip() for number, line in enumerate(lines, 1) if _holds_key(line)}
        for number, key in keys.items():
            if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{path}:{number}: a key is at least {_SHORTEST_KEY} ASCII characters without spaces")
        if not keys:
            raise InputError(f"--api-key-file {path}: holds no key; write one a line")
        return cls(keys.values())

    def check(self, authorization: bytes | None) -> None:
        """Let `Authorization: Bearer KEY` in.

        Raises:
            ApiError: 401, where there are keys and this is none of them.
        """
        if not self._hashes:
            return
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _hash(key.strip())
        known = [hmac.compare_digest(given, own) for own in self._hashes]
        if not any(known) or scheme.lower() != b"bearer":
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


def _holds_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
