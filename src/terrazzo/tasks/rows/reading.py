"""Rows from any source as `Example`s."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from terrazzo.data.sources import COMPRESSIONS
from terrazzo.errors import InputError
from terrazzo.tasks.rows.binary_files import hub, parquet
from terrazzo.tasks.rows.conll import column_file
from terrazzo.tasks.rows.examples import example_of, label_type
from terrazzo.tasks.rows.fields import ALIASES, MissingColumn, check_fields, choose_columns
from terrazzo.tasks.rows.record import Record
from terrazzo.tasks.rows.squad import is_squad, squad_rows
from terrazzo.tasks.rows.text_files import (
    comma_separated,
    json_document,
    json_lines,
    json_record,
    listed,
    read_text,
    tab_separated,
)
from terrazzo.tasks.task import BadRow, Example

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_FORMATS |= {suffix: "conll" for suffix in (".conll", ".conll03", ".bio", ".iob", ".iob2")}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a source.

    Args:
        examples: the rows in order; with `keep_bad`, bad ones in their places.
        columns: the column of each field that was used.
        ignored: columns that were not.
    """

    examples: list[Example | BadRow]
    columns: Mapping[str, str]
    ignored: tuple[str, ...] = ()


@overload
def read_examples(
    source: str | Path,
    kind: str,
    fields: Mapping[str, str] | None = ...,
    *,
    split: str | None = ...,
    labelled: bool = ...,
    keep_bad: Literal[False] = ...,
    encoding: str = ...,
) -> list[Example]: ...


@overload
def read_examples(
    source: str | Path,
    kind: str,
    fields: Mapping[str, str] | None = ...,
    *,
    split: str | None = ...,
    labelled: bool = ...,
    keep_bad: bool,
    encoding: str = ...,
) -> list[Example | BadRow]: ...


def read_examples(
    source: str | Path,
    kind: str,
    fields: Mapping[str, str] | None = None,
    *,
    split: str | None = None,
    labelled: bool = True,
    keep_bad: bool = False,
    encoding: str = "utf-8",
) -> Any:
    """The rows of a file or of a data set on the hub.

    Reads .jsonl, .json (a list, or SQuAD), .csv, .tsv, .parquet, column files (CoNLL), all but parquet also with .gz,
    .xz, .bz2 or .zst, and `hf:owner/name[:config][:split]`.

    Args:
        kind: label, pair, regression, tag, span or multi.
        fields: the column of a field, where its name does not tell; by number (from 0) in files without a header.
        split: split of a hub data set, instead of the name's.
        labelled: whether answers are wanted; without, they are not looked at.
        keep_bad: keep a `BadRow` in the place of each row that cannot be used.
        encoding: of text files.

    Raises:
        InputError: the source cannot be read, holds no rows, or (without `keep_bad`) a row cannot be used.
    """
    return read_rows(
        source, kind, fields, split=split, labelled=labelled, keep_bad=keep_bad, encoding=encoding
    ).examples


def read_rows(
    source: str | Path,
    kind: str,
    fields: Mapping[str, str] | None = None,
    *,
    split: str | None = None,
    labelled: bool = True,
    keep_bad: bool = False,
    encoding: str = "utf-8",
) -> Rows:
    """What `read_examples` gives, with the columns it took and left."""
    given = dict(fields or {})
    check_fields(kind, given)
    opened = _open(str(source), kind, given, split, labelled, encoding, keep_bad)
    kept, given = list(opened.records), opened.fields
    if not kept:
        raise InputError(f"{source}: holds no rows; add some, or name another file")
    columns, ignored = _columns(kept, kind, given, labelled, str(source) if opened.table else None)
    examples = [_example(record, kind, given, labelled) for record in kept]
    if labelled:
        examples = _of_one_type(kept, examples, kind, given)
    bad = [example for example in examples if isinstance(example, BadRow)]
    if bad and not keep_bad:
        more = f" ({len(bad) - 1:,} more bad rows, the next in {bad[1].where})" if len(bad) > 1 else ""
        raise InputError(f"{bad[0].where}: {bad[0].message}{more}")
    return Rows(examples=examples, columns=columns, ignored=ignored)


def read_lines(
    lines: Iterable[bytes | str],
    kind: str,
    fields: Mapping[str, str] | None = None,
    *,
    name: str = "standard input",
    labelled: bool = False,
) -> Iterator[Example | BadRow]:
    """Rows from lines of JSON as they come: bare strings, objects, `["one", "two"]` for pairs; no row for blank lines.

    Raises:
        InputError: fields that the kind does not have; a bad line is a `BadRow` in its place.
    """
    check_fields(kind, fields or {})
    for number, line in enumerate(lines, 1):
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        text = text.removeprefix("\ufeff") if number == 1 else text
        if text.strip():
            yield _example(json_record(text, f"{name}, line {number}"), kind, fields or {}, labelled)


def _example(record: Record, kind: str, fields: Mapping[str, str], labelled: bool) -> Example | BadRow:
    if record.error is not None:
        return BadRow(where=record.where, message=record.error)
    try:
        return example_of(record.values, kind, where=record.where, fields=fields, labelled=labelled)
    except InputError as error:
        return BadRow(where=record.where, message=str(error))


def _of_one_type(
    records: list[Record], examples: list[Example | BadRow], kind: str, fields: Mapping[str, str]
) -> list[Example | BadRow]:
    """The examples, with those bad whose label is of another type than the first row's."""
    if kind not in ("label", "pair", "multi"):
        return examples
    first: tuple[str, str] | None = None
    checked: list[Example | BadRow] = []
    for record, example in zip(records, examples, strict=True):
        if isinstance(example, Example):
            value = record.values[choose_columns(kind, [*map(str, record.values)], fields, True)["label"]]
            kind_of_label = label_type(value)
            first = first or (kind_of_label, record.where)
            if kind_of_label != first[0]:
                message = (
                    f"label: {value!r:.40} is a {kind_of_label} where {first[1]} has a {first[0]}; write all alike"
                )
                example = BadRow(where=record.where, message=message)
        checked.append(example)
    return checked


def _columns(
    records: list[Record], kind: str, fields: Mapping[str, str], labelled: bool, table: str | None
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The columns used and left; of a `table`, whose rows all have the same, missing ones are an error here."""
    row = next((record.values for record in records if isinstance(record.values, Mapping)), None)
    if row is None:
        return {}, ()
    try:
        columns = choose_columns(kind, [str(key) for key in row], fields, labelled)
    except InputError as error:
        if table is not None:
            hint = "; where there is no header, by number, such as --fields text=0,label=1"
            hint = hint if isinstance(error, MissingColumn) and not fields else ""
            raise InputError(f"{table}: {error}{hint}") from None
        return {}, ()  # reported with the row itself
    return columns, tuple(str(key) for key in row if key not in columns.values())


@dataclass(frozen=True)
class _Opened:
    """A source's records, the fields by which columns are still to be chosen, and whether all rows have the same."""

    records: Iterable[Record]
    fields: dict[str, str]
    table: bool = False


def _open(
    source: str, kind: str, fields: dict[str, str], split: str | None, labelled: bool, encoding: str, keep_bad: bool
) -> _Opened:
    path = Path(source)
    if source.startswith("hf:") or (_HUB_NAME.fullmatch(source) and not path.exists() and not _suffix(path)):
        return _Opened(hub(source.removeprefix("hf:"), split), fields, table=True)
    if split is not None:
        raise InputError(f"{source}: split {split!r} is for data sets of the hub; a file is one split")
    if _suffix(path) == "parquet":
        return _Opened(parquet(path), fields, table=True)
    return _open_text(read_text(path, encoding, keep_undecoded=keep_bad), path, kind, fields, labelled)


def _open_text(text: str, path: Path, kind: str, fields: dict[str, str], labelled: bool) -> _Opened:
    name = str(path)
    form = _suffix(path) or _form(text, kind, labelled, name)
    if kind == "tag" and form in ("tsv", "conll") and not _tagged_table(text, fields):
        return _Opened(column_file(text, name, fields, labelled), {})
    if form == "conll":
        raise InputError(f"{name}: a column file holds tagged words, for the task 'tag'; this is the task {kind!r}")
    if form in ("csv", "tsv"):
        table = comma_separated if form == "csv" else tab_separated
        return _Opened(table(text, name, _without_header(text, fields)), fields, table=True)
    if form == "lines":
        numbered = ((number, line.strip("\r")) for number, line in enumerate(text.split("\n"), 1))
        return _Opened((Record(where=f"{name}, line {n}", values=line) for n, line in numbered if line.strip()), {})
    document = json_document(text, name) if form == "json" else None
    if document is None:
        return _Opened(json_lines(text, name), fields)
    return _Opened(squad_rows(document, name), {}) if is_squad(document) else _Opened(listed(document, name), fields)


def _suffix(path: Path) -> str | None:
    inner = Path(path.stem) if path.suffix in COMPRESSIONS else path
    return _FORMATS.get(inner.suffix.lower())


def _form(text: str, kind: str, labelled: bool, name: str) -> str:
    """The format of a file whose suffix says nothing."""
    first = text.lstrip().split("\n", 1)[0]
    if first.startswith(("{", '["', "[{")):
        return "json"
    if kind == "tag":
        return "conll"
    if "\t" in first:
        return "tsv"
    if not labelled:
        return "lines"
    raise InputError(
        f"{name}: cannot tell its format; give it the suffix .jsonl, .json, .csv, .tsv, .parquet or .conll"
    )


def _without_header(text: str, fields: Mapping[str, str]) -> bool:
    """Whether columns are named by number and the first line is not a header of such names."""
    header = {cell.strip().strip('"') for cell in re.split(r"[,;\t|]", text.split("\n", 1)[0])}
    return all(column.isdigit() for column in fields.values()) and not set(fields.values()) <= header


def _tagged_table(text: str, fields: Mapping[str, str]) -> bool:
    """Whether tab-separated rows hold whole sentences, under a header that names their columns."""
    first, _, rest = text.partition("\n")
    header = {cell.strip().lower() for cell in first.split("\t")}
    named = (ALIASES["tokens"] + ALIASES["text"], ALIASES["tags"] + ALIASES["spans"])
    known = all(header & set(names) for names in named) or (bool(fields) and set(fields.values()) <= header)
    return known and not re.search(r"\n[ \t\r]*\n.*\S", rest, re.DOTALL)
