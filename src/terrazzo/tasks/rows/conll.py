"""Column files: a word and its tag a line, a blank line after each sentence (CoNLL, GermEval)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from terrazzo.errors import InputError
from terrazzo.tasks.rows.fields import ALIASES
from terrazzo.tasks.rows.record import Record, undecoded

_TAG = re.compile(r"O|[BILUESM]-.+")
_LOOKED_AT = 20_000

Line = tuple[int, list[str]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns a file has; `tags` is None where words stand alone, `even` says that all lines have `width`."""

    tokens: int
    tags: int | None
    width: int
    even: bool
    separator: str | None
    numbered: bool


def column_file(
    text: str, name: str, fields: Mapping[str, str] | None = None, labelled: bool = True
) -> Iterator[Record]:
    """The sentences of a column file as rows with `tokens` and `tags`.

    The word is in the first column and the tag in the last, unless `fields` names them by number (from 0). Where the
    first column counts words, the word is in the second, and of four columns the third holds the outer tag
    (GermEval 2014). -DOCSTART- lines, comments and a header are left out. Tags stay as they are, whatever their scheme.

    Raises:
        InputError: columns named by anything but a number.
    """
    separator = "\t" if "\t" in text[:_LOOKED_AT] else None
    sentences = _sentences(text, separator)
    layout = _layout(text, separator, fields or {}, labelled)
    for sentence in sentences:
        kept = [line for line in sentence if not _passed_over(line, sentence, layout)]
        if kept:
            yield _record(kept, layout, name)


def _sentences(text: str, separator: str | None) -> Iterator[list[Line]]:
    sentence: list[Line] = []
    for number, line in enumerate(text.split("\n"), 1):
        cells = line.rstrip("\r").split(separator)
        if any(cell.strip() for cell in cells):
            sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _layout(text: str, separator: str | None, fields: Mapping[str, str], labelled: bool) -> Layout:
    lines = [line.split(separator) for line in text[: _LOOKED_AT * 20].split("\n")[:_LOOKED_AT] if line.strip()]
    data = [cells for cells in lines if not cells[0].startswith(("#", "-DOCSTART-"))] or lines
    width = Counter(len(cells) for cells in data).most_common(1)[0][0]
    counted = sum(cells[0].strip().isdigit() for cells in data) > 0.95 * len(data)
    numbered = counted and width > 2 and any(cells[0] == "1" for cells in data)
    tokens = _number(fields, "tokens", 1 if numbered else 0)
    default = 2 if numbered and width == 4 else width - 1
    tags = _number(fields, "tags", default) if labelled else None
    if tags == tokens:
        tags = None
    return Layout(tokens=tokens, tags=tags, width=width, even=not fields, separator=separator, numbered=numbered)


def _number(fields: Mapping[str, str], field: str, default: int) -> int:
    value = fields.get(field)
    if value is None:
        return default
    if not value.isdigit():
        raise InputError(
            f"--fields {field}={value}: columns of such a file have numbers, from 0: --fields tokens=0,tags=3"
        )
    return int(value)


def _passed_over(line: Line, sentence: list[Line], layout: Layout) -> bool:
    number, cells = line
    if cells[0] == "-DOCSTART-":
        return True
    if cells[0].startswith("#") and line == sentence[0] or layout.numbered and cells[0].startswith("#"):
        return layout.numbered or len(cells) != layout.width or not _TAG.fullmatch(cells[-1].strip())
    return number == 1 and cells[layout.tokens].strip().lower() in ALIASES["tokens"] + ("token", "word")


def _record(sentence: list[Line], layout: Layout, name: str) -> Record:
    where = f"{name}, line {sentence[0][0]}"
    needed = max(layout.tokens, layout.tags or 0) + 1
    for number, cells in sentence:
        at = f"{name}, line {number}"
        bad = undecoded(at, "".join(cells))
        if bad is not None:
            return bad
        if len(cells) < needed or (layout.even and len(cells) != layout.width):
            return Record(where=at, error=_misfit(cells, layout, needed))
    values = {"tokens": [cells[layout.tokens].strip() for _, cells in sentence]}
    if layout.tags is not None:
        values["tags"] = [cells[layout.tags].strip() for _, cells in sentence]
    return Record(where=where, values=values)


def _misfit(cells: list[str], layout: Layout, needed: int) -> str:
    expected = f"{layout.width} in the other lines" if layout.even else f"at least {needed}"
    between = "tabs" if layout.separator else "spaces"
    return (
        f"{len(cells)} columns where there are {expected} (separated by {between}: {' '.join(cells)[:40]!r}); every "
        "line holds a word and its tag, and a blank line ends a sentence"
    )
