"""Tags of words and the stretches they stand for: IO, IOB1, IOB2, BIOES and BILOU, read, written and told apart.

A chunk is `(label, first word, word after the last)`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

from terrazzo.errors import InputError
from terrazzo.tasks.task import Span

Chunk = tuple[str, int, int]
#: "plain" are tags that stand alone, such as parts of speech.
Scheme = Literal["IO", "IOB1", "IOB2", "BIOES", "BILOU", "plain"]
#: What models are taught: prefixes are those of their names.
Coding = Literal["IOB2", "BIOES"]

_TAG = re.compile(r"O|[BIESLU]-.+", re.DOTALL)
#: Prefixes of a chunk's only, first, middle and last word.
_PREFIXES = {"IO": [*"IIII"], "IOB2": [*"BBII"], "BIOES": [*"SBIE"], "BILOU": [*"UBIL"]}
_ROLES = {"U": "S", "L": "E"}


def split_words(text: str, joined: bool = False) -> tuple[tuple[int, int], ...]:
    """First and last-plus-one character of every word: letters with their marks, digits and `_`; other signs singly.

    Args:
        joined: signs within a word do not end it, as newspaper corpora have it: `O'Brien`, `U.N.`, `mid-1996`, `3,000`;
            what an apostrophe cuts short stands alone: `Ann 's`.
    """
    return tuple(match.span() for match in _word_pattern(joined).finditer(text))


@cache
def _word_pattern(joined: bool) -> re.Pattern[str]:
    """`\\w` knows no accents and vowel signs that are characters of their own."""
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
    letter = rf"[\w{marks}]"
    if not joined:
        return re.compile(rf"{letter}+|[^\w\s]")
    short = rf"['’]{letter}{{1,2}}(?!{letter})"
    inside = rf"(?:[-./&@]|(?!{short})['’]|(?<=\d)[,:](?=\d))"
    return re.compile(rf"(?:[^\W\d_]\.){{2,}}|(?<={letter}){short}|{letter}+(?:{inside}{letter}+)*|[^\w\s]")


def chunks_of_tags(tags: Sequence[str]) -> list[Chunk]:
    """The chunks that tags of any scheme, valid or not, stand for.

    Every tag but `O` belongs to a chunk; it carries the last one on if it has the same label, is an `I`, `E` or `L`,
    and follows no `E`, `L`, `S` or `U`. Valid IO, IOB1, IOB2, BIOES and BILOU all read right; a plain tag is a chunk of
    its own.

    Reference: conlleval (Tjong Kim Sang and Buchholz, CoNLL-2000), which seqeval follows in its default mode.
    """
    chunks: list[Chunk] = []
    open_label: str | None = None
    for index, tag in enumerate(tags):
        if tag == "O":
            open_label = None
            continue
        role, label = (_ROLES.get(tag[0], tag[0]), tag[2:]) if has_form(tag) else ("B", tag)
        if role in "IE" and label == open_label:
            chunks[-1] = (label, chunks[-1][1], index + 1)
        else:
            chunks.append((label, index, index + 1))
        open_label = None if role in "ES" else label
    return chunks


def tags_of_chunks(chunks: Iterable[Chunk], num_words: int, scheme: Scheme = "IOB2") -> tuple[str, ...]:
    """One tag a word in `scheme` for chunks that do not overlap; IO cannot tell neighbours of one label apart."""
    tags = ["O"] * num_words
    for label, start, end in sorted(chunks, key=lambda chunk: chunk[1:]):
        after_same = start > 0 and tags[start - 1].partition("-")[2] == label
        if scheme == "IOB1":
            only = first = "B" if after_same else "I"
            middle = last = "I"
        else:
            only, first, middle, last = _PREFIXES[scheme]
        inside = [middle] * (end - start - 2)
        prefixes = [only] if end - start == 1 else [first, *inside, last]
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tuple(tags)


def convert_tags(tags: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """Tags of any scheme in another one."""
    return tags_of_chunks(chunks_of_tags(tags), len(tags), scheme)


def detect_scheme(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tag sequences are written in.

    `L` or `U` tell BILOU, `E` or `S` tell BIOES; of the rest, IO has no `B`, IOB1 has `B` only where a chunk follows
    one of its own label, and anything else is IOB2. Tags none of which has such a form are plain.

    Raises:
        InputError: no tag but `O`; tags of two families, each named.
    """
    sequences = [tuple(tags) for tags in sequences]
    kinds = {tag for tags in sequences for tag in tags} - {"O"}
    odd = sorted(tag for tag in kinds if not has_form(tag))
    if not kinds:
        raise InputError("no tag but O in the rows: nothing to learn")
    if len(odd) == len(kinds):
        return "plain"
    if odd:
        regular = min(kinds - set(odd))
        raise InputError(f"tags: {odd[0]!r} has no such form as {regular!r}: write it O or B-, I-, E-, S-, L-, U-LABEL")
    prefixes = {tag[0] for tag in kinds}
    if prefixes & {"L", "U"} and prefixes & {"E", "S"}:
        mixed = ", ".join(sorted(prefixes))
        raise InputError(f"tags begin with {mixed}: BIOES and BILOU in one file; write them all in one scheme")
    if prefixes & {"L", "U"}:
        return "BILOU"
    if prefixes & {"E", "S"}:
        return "BIOES"
    if "B" not in prefixes:
        return "IO"
    return "IOB1" if all(_is_iob1(tags) for tags in sequences) else "IOB2"


def has_form(tag: str) -> bool:
    """Whether a tag is `O` or a prefix of some scheme with a label."""
    return _TAG.fullmatch(tag) is not None


def _is_iob1(tags: Sequence[str]) -> bool:
    before = ("O", *tags)
    return all(tag[0] != "B" or previous[2:] == tag[2:] for previous, tag in zip(before, tags, strict=False))


def tags_of_spans(words: Sequence[tuple[int, int]], spans: Sequence[Span], scheme: Scheme = "IOB2") -> tuple[str, ...]:
    """One tag a word for spans in characters; a word that a span touches belongs to it whole.

    Args:
        words: first and last-plus-one character of each word, ascending.

    Raises:
        InputError: a span that is empty, holds no word, or shares a word with another.
    """
    starts, ends = [start for start, _ in words], [end for _, end in words]
    chunks: list[Chunk] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if span.start >= span.end or first >= last:
            raise InputError(f"span {span.start}-{span.end} ({span.label!r}) holds no word of the text")
        if chunks and first < chunks[-1][2]:
            raise InputError(
                f"span {span.start}-{span.end} ({span.label!r}) shares a word with the one before "
                f"({chunks[-1][0]!r}): spans must not overlap, keep one of them"
            )
        chunks.append((span.label, first, last))
    return tags_of_chunks(chunks, len(words), scheme)


def may_follow(tag: str, following: str, coding: Coding, *, joined: bool = False) -> bool:
    """Whether two tags of `coding` may stand side by side; `O` stands before and after every text.

    Args:
        joined: refuse a chunk right after one of its own label, which IO cannot write.
    """
    (role, _, label), (next_role, _, next_label) = tag.partition("-"), following.partition("-")
    if next_role in ("I", "E"):
        return role in ("B", "I") and label == next_label
    if coding == "BIOES" and role in ("B", "I"):
        return False
    return not (joined and label and label == next_label)
