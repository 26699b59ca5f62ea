"""Rows of text files: JSON, JSON lines, delimited columns."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from terrazzo.data.sources import COMPRESSIONS, Source, open_source
from terrazzo.errors import InputError
from terrazzo.tasks.rows.record import Record, undecoded

_SNIFFED = 1 << 16
_ROWS_SNIFFED = 200
_MAX_FIELD = 1 << 27


def read_text(path: Path, encoding: str = "utf-8", *, keep_undecoded: bool = False) -> str:
    """The whole of a text file, unpacked and without a byte order mark.

    With `keep_undecoded`, bytes of another encoding come as surrogates instead of ending it; see `undecoded`.

    Raises:
        InputError: no such file, an empty or binary one, an unknown encoding, bytes that are not of the encoding.
    """
    name, data = str(path), _bytes(path)
    if not data.strip():
        raise InputError(f"{name}: the file is empty; fetch it again, or name another")
    codec = _codec(encoding)
    if codec == "utf-8" and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name}: is UTF-16; {_converting(path, 'utf-16')}")
    if codec in ("utf-8", "cp1252", "iso8859-1") and b"\0" in data[:_SNIFFED]:
        raise InputError(f"{name}: holds NUL bytes, so it is not text; name a file of rows (.jsonl, .csv, ...)")
    try:
        return data.decode(codec, "surrogateescape" if keep_undecoded else "strict").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(_undecodable(path, data, error)) from None


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the file of rows in it")
    try:
        with open_source(Source(str(path), "text")) as (stream, _):
            return stream.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; data set names are written hf:owner/name[:config][:split]") from None
    except PermissionError:
        raise InputError(f"{path}: cannot be read (permission denied); make it readable") from None


def _codec(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise InputError(f"encoding {encoding!r}: no such encoding; try utf-8, cp1252, latin1 or utf-16") from None


def _undecodable(path: Path, data: bytes, error: UnicodeDecodeError) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    problem = f"{path}, line {line}: byte {error.start} (0x{data[error.start]:02x}) is not {error.encoding.upper()}"
    return f"{problem}; {_converting(path, 'latin1')}"


def _converting(path: Path, encoding: str) -> str:
    unpacked = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    first = "convert it" if unpacked == path else "unpack and convert it"
    return f"{first}: iconv -f {encoding} -t utf-8 {unpacked} > converted{unpacked.suffix}"


def json_lines(text: str, name: str) -> Iterator[Record]:
    """One JSON value a line: an object, or a bare string or list."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield json_record(line, f"{name}, line {number}")


def json_record(line: str, where: str) -> Record:
    """The record of one line of JSON."""
    bad = undecoded(where, line)
    if bad is not None:
        return bad
    try:
        return Record(where=where, values=json.loads(line))
    except json.JSONDecodeError as error:
        mend = (
            'write one object a line, such as {"text": "..."}; plain lines become that with `jq -cR "{text: .}"`, '
            'an indented file with `jq -c ".[]"`'
        )
        return Record(where=where, error=f"column {error.colno}: not JSON ({error.msg}); {mend}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return Record(where=where, error=f"unreadable JSON ({error}); mend or delete the line")


def json_document(text: str, name: str) -> Any:
    """The value of a .json file, or None where it is lines of JSON.

    Raises:
        InputError: it is neither.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{name}: unreadable JSON ({error})") from None
    except json.JSONDecodeError as error:
        first = text.lstrip().split("\n", 1)[0]
        if json_record(first, name).error is None:
            return None
        raise InputError(f"{name}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None


def listed(rows: Any, name: str) -> Iterator[Record]:
    """The rows of a JSON list, also under the key "data"."""
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        held = f"keys {', '.join(map(repr, list(rows)[:8]))}" if isinstance(rows, dict) else repr(rows)[:40]
        raise InputError(
            f"{name}: JSON that is no list of rows ({held}); write a list of objects, or one object a line"
        )
    for number, row in enumerate(rows, 1):
        yield Record(where=f"{name}, row {number}", values=row)


def tab_separated(text: str, name: str, numbered: bool) -> Iterator[Record]:
    """Columns between tabs; quotes are ordinary characters, as in GLUE's files."""
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
    cells = ((number, line.split("\t")) for number, line in lines if line.strip())
    yield from _under_header(cells, name, "\t", numbered)


def comma_separated(text: str, name: str, numbered: bool) -> Iterator[Record]:
    """Columns between the one of `, ; tab |` that gives the first rows equal widths, quoted with " or '."""
    csv.field_size_limit(_MAX_FIELD)
    delimiter, quote = _dialect(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, strict=True)
    yield from _under_header(_csv_cells(reader, name, delimiter), name, delimiter, numbered)


def _csv_cells(reader: Any, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{name}, in the row that starts in line {line}: not CSV separated by {delimiter!r} ({error}); look for an "
            "unclosed quote, and double the quotes inside of quoted text"
        ) from None


def _dialect(text: str) -> tuple[str, str]:
    """Delimiter and quotation mark; the usual ones unless others fit better."""
    head = text[:_SNIFFED]
    choices = [(delimiter, '"') for delimiter in ",;\t|"]
    choices += [(delimiter, "'") for delimiter in ",;\t|" if f"{delimiter}'" in head]
    return max(choices, key=lambda choice: _evenness(head, *choice))


def _evenness(head: str, delimiter: str, quote: str) -> float:
    """Share of the first rows that are as wide as the first one, 0 where that is a single column."""
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, quotechar=quote)  # never raises: not strict
    rows = [row for row in itertools.islice(reader, _ROWS_SNIFFED) if row]
    if len(rows) > 2 and len(head) == _SNIFFED:
        rows.pop()  # may be cut short
    width = len(rows[0])
    return sum(len(row) == width for row in rows) / len(rows) if width > 1 else 0.0


def _under_header(rows: Iterator[tuple[int, list[str]]], name: str, delimiter: str, numbered: bool) -> Iterator[Record]:
    header: Sequence[str] | None = None
    for line, cells in rows:
        if header is None:
            header = [str(i) for i in range(len(cells))] if numbered else [cell.strip() for cell in cells]
            _check_header(header, name)
            if not numbered:
                continue
        if numbered and delimiter == "\t":
            header = [str(i) for i in range(len(cells))]  # files without a header may add columns further down
        yield _record(header, cells, f"{name}, line {line}", delimiter)


def _check_header(header: Sequence[str], name: str) -> None:
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise InputError(
            f"{name}, line 1: the header names {twice[:40]!r} twice; give every column a name of its own, or where "
            "there is no header name columns by number: --fields text=0,label=1"
        )


def _record(header: Sequence[str], cells: list[str], where: str, delimiter: str) -> Record:
    bad = undecoded(where, delimiter.join(cells))
    if bad is not None:
        return bad
    if len(cells) == len(header):
        return Record(where=where, values=dict(zip(header, cells, strict=True)))
    mend = "put text that holds it in double quotes" if delimiter != "\t" else "tabs within a text must become spaces"
    many = f"{len(cells)} columns separated by {delimiter!r} where the first line has {len(header)}"
    return Record(where=where, error=f"{many}, the last is {cells[-1][:40]!r}: {mend}")
