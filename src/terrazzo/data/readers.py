"""The documents of one source: one generator a format, from an open file to texts."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

from terrazzo.data.sources import MAX_LINE, Source, lines, open_source, pyarrow
from terrazzo.errors import InputError

DocumentUnit = Literal["auto", "line", "paragraph", "file"]
MAX_FILE_DOCUMENT = 64 << 20  # characters
_DECIDING_LINES = 10_000


def batches(
    source: Source,
    text_field: str,
    unit: DocumentUnit,
    skip: int = 0,
    max_documents: int = 512,
    max_characters: int = 1 << 20,
) -> Iterator[tuple[list[str], int]]:
    """Documents of `source` in batches, each with the bytes of the file read so far (documents for the hub).

    Args:
        skip: documents to leave out at the front; a run that stopped after `skip` gets the batches it would have got.

    Raises:
        InputError: whatever makes the source unreadable, with file and line.
    """
    if source.kind == "hub":
        yield from _batch(read_hub(source.name, text_field, skip), None, max_documents, max_characters)
        return
    with open_source(source) as (stream, position):
        documents = itertools.islice(_read(stream, source, text_field, unit), skip, None)
        yield from _batch(documents, position, max_documents, max_characters)


def read_txt(stream: BinaryIO, name: str, unit: DocumentUnit = "auto") -> Iterator[str]:
    """Plain text. A document is a line, a block of lines between blank ones (joined by spaces), or the file.

    "auto" takes blocks where at least one in two hundred of the first ten thousand lines is blank, and lines otherwise.
    """
    texts: Iterator[str] = (text for _, text in lines(stream, name))
    if unit == "auto":
        first = list(itertools.islice(texts, _DECIDING_LINES))
        unit, texts = _natural_unit(first), itertools.chain(first, texts)
    if unit == "line":
        yield from texts
    elif unit == "paragraph":
        yield from _paragraphs(texts, name)
    else:
        yield _whole(texts, name)


def read_jsonl(stream: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    """One JSON object a line, the text in `text_field`; null counts as empty."""
    for number, line in lines(stream, name):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{name}, line {number}, column {error.colno}: not JSON ({error.msg}); every line holds one object, "
                'such as {"text": "..."}: mend or delete the line; an indented file becomes lines with `jq -c .`'
            ) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise InputError(f"{name}, line {number}: unreadable JSON ({error}); mend or delete the line") from None
        if not isinstance(row, dict):
            raise InputError(
                f"{name}, line {number}: a JSON {type(row).__name__}, not an object such as "
                '{"text": "..."}; an array becomes lines with `jq -c ".[]"`'
            )
        yield _text_of(row, text_field, f"{name}, line {number}")


def read_csv(stream: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    """Delimited rows under a header line, separated by the one of `, ; tab |` that the header holds most often."""
    csv.field_size_limit(MAX_LINE)
    texts = (text + "\n" for _, text in lines(stream, name))
    header = next(texts, "")
    delimiter = max(",;\t|", key=header.count)
    rows = csv.DictReader(itertools.chain([header], texts), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if text_field not in row:
                raise InputError(_missing(f"{name}, line 1 (the header)", text_field, list(rows.fieldnames or [])))
            if any(row.get(None) or ()):
                raise InputError(_surplus(f"{name}, line {rows.line_num}", delimiter, row, list(rows.fieldnames or [])))
            yield _text_of(row, text_field, f"{name}, line {rows.line_num}")
    except csv.Error as error:
        lone = "new-line character" in str(error)
        mend = (
            "carriage returns without line feeds: convert them with `tr '\\r' '\\n'`" if lone else "an unclosed quote"
        )
        raise InputError(
            f"{name}, in the row after line {rows.line_num}: not CSV separated by {delimiter!r} ({error}); look for "
            f"{mend}"
        ) from None


def read_parquet(stream: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    """The column `text_field` of a parquet file, a thousand rows at a time."""
    arrow = pyarrow(name)
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(stream)
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise InputError(_missing(name, text_field, columns))
        for batch in file.iter_batches(batch_size=1000, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                yield _text_of({text_field: value}, text_field, name)
    except arrow.ArrowException as error:
        raise InputError(f"{name}: damaged, or not a parquet file ({error}); fetch it again") from None


def read_hub(name: str, text_field: str, skip: int = 0) -> Iterator[str]:
    """Stream `owner/name[:config][:split]` from the Hugging Face hub; the split is `train` unless named."""
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such file or folder; to read it as a data set from the Hugging Face hub: "
            "pip install 'terrazzo[data]'"
        ) from None
    repository, *rest = name.split(":")
    split = rest[-1] if rest else "train"
    try:
        stream = datasets.load_dataset(repository, *rest[:-1], split=split, streaming=True)
        for index, row in enumerate(stream.skip(skip) if skip else stream, start=skip):
            yield _text_of(row, text_field, f"{name}, row {index}")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name}: neither a file nor a data set that the hub gives out ({error}); check the name and the network"
        ) from None


def _read(stream: BinaryIO, source: Source, text_field: str, unit: DocumentUnit) -> Iterator[str]:
    if source.kind == "txt":
        return read_txt(stream, source.name, unit)
    reader = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[source.kind]
    return reader(stream, source.name, text_field)


def _batch(
    documents: Iterator[str], position: Any, max_documents: int, max_characters: int
) -> Iterator[tuple[list[str], int]]:
    batch: list[str] = []
    characters, count = 0, 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) >= max_documents or characters >= max_characters:
            count += len(batch)
            yield batch, position() if position else count
            batch, characters = [], 0
    if batch:
        yield batch, position() if position else count + len(batch)


def _natural_unit(first: list[str]) -> DocumentUnit:
    text = "\n".join(first).strip().split("\n")
    blank = sum(not line.strip() for line in text)
    return "paragraph" if blank * 200 >= len(text) else "line"


def _paragraphs(texts: Iterator[str], name: str) -> Iterator[str]:
    block: list[str] = []
    characters = 0
    for text in itertools.chain(texts, [""]):
        stripped = text.strip()
        if stripped:
            block.append(stripped)
            characters += len(stripped)
            if characters > MAX_LINE:
                raise InputError(
                    f"{name}: a paragraph of more than {MAX_LINE >> 20} Mi characters, starting {block[0][:40]!r}; "
                    "use --document line if every line is a document, or put blank lines between them"
                )
        elif block:
            yield " ".join(block)
            block, characters = [], 0


def _whole(texts: Iterator[str], name: str) -> str:
    kept: list[str] = []
    characters = 0
    for text in texts:
        kept.append(text)
        characters += len(text) + 1
        if characters > MAX_FILE_DOCUMENT:
            raise InputError(
                f"{name}: more than {MAX_FILE_DOCUMENT >> 20} Mi characters in one document; "
                "use --document paragraph or --document line"
            )
    return "\n".join(kept)


def _text_of(row: Mapping[Any, Any], field: str, where: str) -> str:
    if field not in row:
        raise InputError(_missing(where, field, [name for name in row if name is not None]))
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r} holds {value!r:.60}, not text; choose another with --text-field")
    return value


def _surplus(where: str, delimiter: str, row: Mapping[Any, Any], fields: list[str]) -> str:
    return (
        f"{where}: {len(fields) + len(row[None])} fields separated by {delimiter!r} under a header of {len(fields)}, "
        f"the first too many is {row[None][0]!r:.40}: put text that holds {delimiter!r} in double quotes"
    )


def _missing(where: str, field: str, fields: list[str]) -> str:
    seen = ", ".join(f"{name:.40}" for name in fields[:12]) or "none"
    return f"{where}: no field {field!r}; the fields are {seen}: choose one with --text-field"
