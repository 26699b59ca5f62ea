"""The API keys that open a server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from terrazzo.errors import InputError

#: Shorter keys can be guessed.
_SHORTEST = 8


class Keys:
    """The keys that open a server; without any it is open to everybody.

    Only their hashes are kept, and a given key is compared with all of them, each in constant time.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """The keys of a file, one a line; blank lines and those that begin with # are left out. None gives none.

        Raises:
            InputError: the file cannot be read, holds no key, or one that is too short or has other signs than ASCII's.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {path}: cannot be read: {error}") from None
        keys = {number: line.strip() for number, line in enumerate(lines, 1) if _holds_key(line)}
        for number, key in keys.items():
            if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{path}:{number}: a key is at least {_SHORTEST} ASCII characters without spaces")
        if not keys:
            raise InputError(f"--api-key-file {path}: holds no key; write one a line")
        return cls(keys.values())

    def open_to(self, authorization: bytes | None) -> bool:
        """Whether `Authorization: Bearer KEY` opens the server."""
        if not self._hashes:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _hash(key.strip())
        known = [hmac.compare_digest(given, own) for own in self._hashes]
        return any(known) and scheme.lower() == b"bearer"


def _holds_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
