"""What a cleaning filter is, and the filters that suit any language.

A filter is a function `text -> text | None`. It returns the text (changed or not) or None (or nothing) to drop the
document, and carries the reason that the report then counts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Filter:
    """A cleaning step; `reason` is what the report says of documents that it drops."""

    reason: str
    apply: Callable[[str], str | None]


def drops(reason: str) -> Callable[[Callable[[str], str | None]], Filter]:
    """Decorator that makes a function a `Filter`."""
    return lambda function: Filter(reason, function)


@drops("blank")
def tidy_whitespace(text: str) -> str:
    """One space between words, at most one blank line between paragraphs, none at the ends."""
    if "\n" not in text:
        return " ".join(text.split())
    lines = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip()


@drops("only control characters")
def repair_unicode(text: str) -> str:
    """Compose characters (NFC), mend UTF-8 that was once read as Windows-1252, remove invisible control characters."""
    if text.isascii():
        return _CONTROLS.sub("", text)
    if _MOJIBAKE.search(text):
        text = _read_again(text)
    text = _CONTROLS.sub("", text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


@drops("holds U+FFFD, the mark of bytes lost in an earlier conversion")
def no_lost_characters(text: str) -> str | None:
    """Drop documents with the replacement character."""
    return None if "\ufffd" in text else text


def min_characters(count: int) -> Filter:
    """Drop documents of fewer than `count` characters."""
    return Filter(f"fewer than {count} characters", lambda text: text if len(text) >= count else None)


def min_letter_share(share: float) -> Filter:
    """Drop documents in which letters are less than `share` of the bytes that are not white space.

    Bytes outside ASCII count as letters, which holds for every script but makes the test lenient on typographic marks.
    """

    def apply(text: str) -> str | None:
        dense = text.encode("utf-8", "replace").translate(None, _SPACES)
        return text if len(dense.translate(None, _NOT_LETTERS)) >= share * len(dense) else None

    return Filter(f"less than {share:.0%} letters", apply)


_BLANK_LINES = re.compile(r"\n{3,}")
# C0 and C1 controls but tab and line ends, soft hyphen, zero-width space, bidirectional marks, byte order mark; not the
# zero-width joiners, which emoji and several scripts need.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb]"
)
# The first byte of a two- or three-byte UTF-8 character, then a continuation byte, both read as Windows-1252.
_MOJIBAKE = re.compile("[\u00c2-\u00c5\u00e2][\u0080-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]")
_SPACES = string.whitespace.encode()
_NOT_LETTERS = (string.digits + string.punctuation).encode()


def _read_again(text: str) -> str:
    """Undo one wrong decoding; a text with any character that was right is left alone, because the bytes then break."""
    try:
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text
