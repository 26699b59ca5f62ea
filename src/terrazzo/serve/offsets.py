"""Places in a text: as Python counts them, and as JavaScript does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def shifted(text: str, places: Sequence[tuple[int, int]], offsets: str) -> list[tuple[int, int]]:
    """First and last-plus-one character of stretches, counted in `offsets`: "codepoints" or "utf16"."""
    if offsets == "codepoints" or text.isascii():
        return list(places)
    before = [0, *accumulate(2 if character > "\uffff" else 1 for character in text)]
    return [(before[start], before[end]) for start, end in places]
