"""One row into an `Example`: each kind's fields checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from terrazzo.data.tokenizer import encodable
from terrazzo.errors import InputError
from terrazzo.tasks.rows.fields import check_fields, choose_columns
from terrazzo.tasks.rows.squad import answers_of
from terrazzo.tasks.task import Example, Span, Target

Row = Mapping[str, Any]


def example_of(
    row: Any, kind: str, *, where: str = "", fields: Mapping[str, str] | None = None, labelled: bool = True
) -> Example:
    """The example of one row: a mapping, a bare text, a list of two texts (or question and context), a list of words.

    With `labelled=False` answers are neither needed nor looked at.

    Raises:
        InputError: what is wrong with the row, without `where`.
    """
    check_fields(kind, fields or {})
    values = row if isinstance(row, Mapping) else _bare(row, kind)
    columns = choose_columns(
        kind, [str(key) for key in values], fields or {} if isinstance(row, Mapping) else {}, labelled
    )
    found = {field: values[column] for field, column in columns.items()}
    return _BUILDERS[kind](found, where, labelled)


def _bare(row: Any, kind: str) -> Row:
    if isinstance(row, str) and kind in ("label", "regression", "multi", "tag"):
        return {"text": row}
    if isinstance(row, Sequence) and not isinstance(row, str) and all(isinstance(item, str) for item in row):
        if kind == "tag":
            return {"tokens": list(row)}
        if len(row) == 2 and kind != "label":
            return dict(zip(("question", "context") if kind == "span" else ("a", "b"), row, strict=True))
    wanted = {"pair": '["one text", "another"]', "span": '{"question": ..., "context": ...}'}
    raise InputError(f"{row!r:.60} is no row of the task {kind!r}; write {wanted.get(kind, 'a text or an object')}")


def _texts(row: Row, where: str, target: Target | None, problem: str | None = None) -> Example:
    first, second = ("text", None) if "text" in row else ("a", "b")
    other = None if second is None else _text(row, second)
    return Example(text=_text(row, first), other=other, target=target, problem=problem, where=where, id=_id(row))


def _label(row: Row, where: str, labelled: bool) -> Example:
    return _texts(row, where, label_of(row["label"]) if labelled else None)


def _multi(row: Row, where: str, labelled: bool) -> Example:
    problem = row.get("problem")
    if problem is None or problem == "":
        raise InputError("no problem is named: add the field 'problem', which says what the row belongs to")
    if not isinstance(problem, str) or not problem.strip():
        raise InputError(f"problem: {problem!r:.40} is no name; say which problem the row belongs to")
    return _texts(row, where, label_of(row["label"]) if labelled else None, problem.strip())


def _regression(row: Row, where: str, labelled: bool) -> Example:
    return _texts(row, where, score_of(row["score"]) if labelled else None)


def _tag(row: Row, where: str, labelled: bool) -> Example:
    if "tokens" not in row:
        text = _text(row, "text")
        target = tuple(_span(span, text) for span in _list(row["spans"], "spans")) if labelled else None
        return Example(text=text, target=target, where=where, id=_id(row))
    tokens = [_token(token, place) for place, token in enumerate(_list(row["tokens"], "tokens"), 1)]
    if not tokens:
        raise InputError("tokens: the list is empty; leave the row out")
    tags = tuple(_tag_name(tag, place) for place, tag in enumerate(_list(row["tags"], "tags"), 1)) if labelled else None
    if tags is not None and len(tags) != len(tokens):
        raise InputError(f"{len(tokens)} tokens and {len(tags)} tags: every token needs one (O where it has none)")
    ends = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token) + 1)
    words = tuple((start, start + len(token)) for start, token in zip(ends, tokens, strict=False))
    return Example(text=" ".join(tokens), target=tags, words=words, where=where, id=_id(row))


def _question(row: Row, where: str, labelled: bool) -> Example:
    context = _text(row, "context")
    target = answers_of({**row, "answers": _answers(row.get("answers"))}, context) if labelled else None
    return Example(text=context, other=_text(row, "question"), target=target, where=where, id=_id(row))


_BUILDERS: Mapping[str, Callable[[Row, str, bool], Example]] = {
    "label": _label,
    "pair": _label,
    "regression": _regression,
    "tag": _tag,
    "span": _question,
    "multi": _multi,
}


def label_of(value: Any) -> str | tuple[str, ...]:
    """A class, or several of them from a list, by name.

    Raises:
        InputError: none at all, or something that is no class.
    """
    if isinstance(value, (list, tuple)):
        names = tuple(_class_name(item) for item in value)
        if len(set(names)) < len(names):
            raise InputError(f"label: {value!r:.60} names a class twice")
        return names
    return _class_name(value)


def label_type(value: Any) -> str:
    """What sort of label a value is, to find files that mix them."""
    if isinstance(value, (list, tuple)):
        return "list"
    return "text" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "number"


def _class_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        raise InputError("label: there is none; give every row one, or leave the row out")
    if isinstance(value, float):
        raise InputError(f"label: {value} is a fraction, not a class; for values take the task 'regression'")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"label: {value!r:.40} is no class; write a name, or a list of names for several")
    return encodable(value.strip())


def score_of(value: Any) -> float:
    """A finite number.

    Raises:
        InputError: anything else.
    """
    mend = "write a number such as 3.5, or leave the row out"
    if isinstance(value, bool) or value is None or not isinstance(value, (int, float, str)):
        raise InputError(f"score: {value!r:.40} is no number; {mend}")
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"score: {value!r:.40} is no number; {mend}") from None
    if not math.isfinite(number):
        raise InputError(f"score: {value!r:.40} is not finite; {mend}")
    return number


def _text(row: Row, field: str) -> str:
    value = row[field]
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        raise InputError(f"{field}: the text is empty; fill it in, or leave the row out")
    if not isinstance(value, str):
        raise InputError(f"{field}: {value!r:.40} is not text; name another column with --fields {field}=COLUMN")
    if not value.strip():
        raise InputError(f"{field}: the text is blank; fill it in, or leave the row out")
    return encodable(value)


def _id(row: Row) -> str | None:
    value = row.get("id")
    return str(value) if isinstance(value, (str, int)) and value != "" else None


def _list(value: Any, field: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, field)
    elif isinstance(value, str) and field in ("tokens", "tags"):
        return value.split()
    if value is None:
        raise InputError(f"{field}: there are none; write a list, [] for an empty one")
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{field}: {value!r:.40} is no list")
    return list(value)


def _answers(value: Any) -> Any:
    return _json(value, "answers") if isinstance(value, str) and value.startswith(("[{", "{", '["', "[]")) else value


def _json(value: str, field: str) -> Any:
    import json

    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        raise InputError(f"{field}: {value[:40]!r} is no JSON list ({error})") from None


def _token(value: Any, place: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"tokens: number {place} is {value!r:.40}, which is no word; leave it and its tag out")
    return encodable(value.strip())


def _tag_name(value: Any, place: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"tags: number {place} is {value!r:.40}; write O where a word has no tag")
    return value.strip()


def _span(value: Any, text: str) -> Span:
    if isinstance(value, (list, tuple)) and len(value) == 3:
        value = dict(zip(("start", "end", "label"), value, strict=True))
    if not isinstance(value, Mapping) or not {"start", "end", "label"} <= value.keys():
        raise InputError(f'spans: {value!r:.60} is no span; write {{"start": 0, "end": 5, "label": "PER"}}')
    start, end, label = value["start"], value["end"], value["label"]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (start, end))
    if not whole or not 0 <= start < end <= len(text):
        raise InputError(f"spans: {start!r:.20} to {end!r:.20} is no stretch of a text of {len(text)} characters")
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"spans: {label!r:.40} is no label; write its name")
    given = value.get("text")
    if given is not None and given != text[start:end]:
        raise InputError(f"spans: characters {start} to {end} are {text[start:end]!r:.40}, not {given!r:.40}")
    return Span(start=start, end=end, label=label.strip(), text=text[start:end])
