"""A row before anybody asked what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a file.

    Args:
        where: file and line or row, for messages.
        values: its values by column; in JSON lines also a bare string or list.
        error: why the row could not even be read; `values` is None then.
    """

    where: str
    values: Any = None
    error: str | None = None


def undecoded(where: str, text: str) -> Record | None:
    """The record of a line that holds bytes of another encoding (as surrogates), None for a sound line."""
    found = _UNDECODED.search(text)
    if found is None:
        return None
    byte = ord(found.group()) - 0xDC00
    return Record(where=where, error=f"byte 0x{byte:02x} is not UTF-8; convert it with iconv -f latin1 -t utf-8")
