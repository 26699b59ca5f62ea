"""Questions on texts: the SQuAD format, and answers found in their context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from terrazzo.errors import InputError
from terrazzo.tasks.rows.record import Record
from terrazzo.tasks.task import Span


def is_squad(document: Any) -> bool:
    """Whether a JSON value is SQuAD's: articles with paragraphs under "data"."""
    articles = document.get("data") if isinstance(document, Mapping) else None
    return (
        isinstance(articles, list)
        and bool(articles)
        and isinstance(articles[0], Mapping)
        and "paragraphs" in articles[0]
    )


def squad_rows(document: Mapping[str, Any], name: str) -> Iterator[Record]:
    """A row for every question of a SQuAD file, version 1 or 2.

    Raises:
        InputError: a part of the format is missing.
    """
    for index, article in enumerate(document["data"], 1):
        place = f"{name}, article {index}"
        for number, paragraph in enumerate(_part(article, "paragraphs", place), 1):
            inside = f"{place}, paragraph {number}"
            context = _part(paragraph, "context", inside)
            for question in _part(paragraph, "qas", inside):
                where = f"{inside}, question {_part(question, 'id', inside)!s:.40}"
                yield Record(where=where, values={**question, "context": context})


def _part(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise InputError(f"{where}: no {key!r}, which the SQuAD format has there; mend the file, or write JSON lines")
    return value[key]


def answers_of(row: Mapping[str, Any], context: str) -> tuple[Span, ...]:
    """The accepted answers of a row, () where the context holds none.

    Answers may be a list of {"text", "answer_start"}, a mapping of two lists as the hub has it, a text, or nothing.

    Raises:
        InputError: an answer that is not in its context.
    """
    if row.get("is_impossible") in (True, "true", "True", 1, "1"):
        return ()
    given = row.get("answers")
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):
        texts: list[Any] = given["text"]
        starts = given.get("answer_start") or [None] * len(texts)
        if len(starts) != len(texts):
            raise InputError(f"answers: {len(texts)} texts and {len(starts)} starts; give each text its start")
        pairs = list(zip(texts, starts, strict=True))
    else:
        pairs = [_pair(answer, row.get("answer_start")) for answer in _listed(given)]
    return tuple(_found(text, start, context) for text, start in pairs)


def _listed(given: Any) -> list[Any]:
    if given is None or given == "":
        return []
    return given if isinstance(given, list) else [given]


def _pair(answer: Any, start: Any) -> tuple[Any, Any]:
    if isinstance(answer, Mapping):
        return answer.get("text"), answer.get("answer_start", answer.get("start"))
    return answer, start


def _found(text: Any, start: Any, context: str) -> Span:
    """The answer's place; a start that does not fit is mended where the text occurs exactly once."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"answers: {text!r:.40} is no text; leave `answers` empty where the context holds no answer")
    begin = _offset(start)
    if begin is not None and context[begin : begin + len(text)] == text:
        return Span(start=begin, end=begin + len(text), label="", text=text)
    text = text.strip()
    count = context.count(text)
    if count != 1:
        found = f"which stands there {count} times" if count else "which is not in its context"
        shown = "no answer_start" if begin is None else f"answer_start {begin}"
        raise InputError(
            f"answers: {text[:60]!r} with {shown}, {found}; give the first character's number in the context"
        )
    begin = context.index(text)
    return Span(start=begin, end=begin + len(text), label="", text=text)


def _offset(start: Any) -> int | None:
    if start is None or start == "":
        return None
    if isinstance(start, list) and len(start) == 1:
        start = start[0]
    if isinstance(start, str) and start.strip().isdigit():
        start = int(start)
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if isinstance(start, bool) or not isinstance(start, int):
        raise InputError(f"answers: answer_start {start!r:.40} is no whole number")
    return start if start >= 0 else None
