"""Which column of a file is which field of a row, where nobody said so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from terrazzo.config import nearest
from terrazzo.errors import InputError

#: The fields of every kind of task: those it needs, each with what it may be replaced by, and the optional ones.
KINDS: Mapping[str, tuple[str, ...]] = {
    "label": ("text", "label", "id"),
    "pair": ("a", "b", "label", "id"),
    "regression": ("text", "a", "b", "score", "id"),
    "tag": ("tokens", "tags", "text", "spans", "id"),
    "span": ("question", "context", "answers", "answer_start", "is_impossible", "id"),
    "multi": ("text", "a", "b", "label", "problem", "id"),
}

ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "document", "utterance"),
    "label": ("label", "labels", "class", "category", "target", "intent", "gold_label", "entailment_judgment")
    + ("quality", "is_duplicate"),
    "score": ("score", "label", "value", "target", "similarity", "relatedness_score"),
    "problem": ("problem", "domain", "task"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "spans": ("spans", "entities", "label"),
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph"),
    "answers": ("answers", "answer"),
    "answer_start": ("answer_start",),
    "is_impossible": ("is_impossible",),
    "id": ("id", "idx", "index", "guid", "pair_id"),
}

PAIRS = (
    ("a", "b"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("question", "passage"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("#1 string", "#2 string"),
)

_TARGETS = {"label": ("label",), "pair": ("label",), "regression": ("score",), "tag": ("tags", "spans")}
_TARGETS |= {"span": ("answers", "answer_start", "is_impossible"), "multi": ("label",)}


class MissingColumn(InputError):
    """No column has the name that a field should have."""


def check_fields(kind: str, fields: Mapping[str, str]) -> None:
    """Refuse a kind that does not exist and fields that it does not have.

    Raises:
        InputError: naming the nearest.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r}: no such kind of task; {nearest(kind, KINDS)}")
    for field in fields:
        if field not in KINDS[kind]:
            raise InputError(
                f"--fields {field}={fields[field]}: {kind} rows have no field {field!r}; {nearest(field, KINDS[kind])}"
            )


def choose_columns(kind: str, columns: Sequence[str], fields: Mapping[str, str], labelled: bool) -> dict[str, str]:
    """The column of each field of a `kind` of row.

    Raises:
        InputError: a field without a column, or with several that could be meant.
    """
    return dict(_choose(kind, tuple(columns), tuple(sorted(fields.items())), labelled))


@lru_cache(maxsize=256)
def _choose(
    kind: str, columns: tuple[str, ...], given: tuple[tuple[str, str], ...], labelled: bool
) -> tuple[tuple[str, str], ...]:
    chosen = {field: column for field, column in given if labelled or field not in _TARGETS[kind]}
    for field, column in chosen.items():
        if column not in columns:
            raise MissingColumn(f"no column {column!r} for {field!r} (--fields); {_columns(columns)}")
    inputs = {"tag": _tagged, "span": _asked}.get(kind, _texts)
    chosen |= inputs(kind, columns, chosen, labelled)
    if "problem" in KINDS[kind] and "problem" not in chosen:
        found = _find("problem", columns)
        chosen |= _required("problem", found, columns) if labelled else _optional("problem", found)
    if labelled and kind not in ("tag", "span"):
        (target,) = _TARGETS[kind]
        if target not in chosen:
            chosen |= _required(target, _find(target, columns, taken=chosen.values()), columns)
    if not labelled:
        chosen = {field: column for field, column in chosen.items() if field not in _TARGETS[kind]}
    if "id" not in chosen:
        chosen |= _optional("id", _find("id", columns, strict=False))
    return tuple(chosen.items())


def _texts(kind: str, columns: tuple[str, ...], given: Mapping[str, str], labelled: bool) -> dict[str, str]:
    if "text" in given:
        return {}
    if "a" in given or "b" in given:
        missing = {"a", "b"} - given.keys()
        if missing:
            raise InputError(f"no column for {missing.pop()!r}; name both texts with --fields a=COLUMN,b=COLUMN")
        return {}
    if kind != "pair" and "text" in columns and "text_pair" not in columns:
        return {"text": "text"}
    pair = _pair(columns)
    if pair is not None and kind == "label":
        raise InputError(
            f"two texts, {pair[0]!r} and {pair[1]!r}: take the task 'pair', or name one with --fields text=COLUMN"
        )
    if pair is not None:
        return {"a": pair[0], "b": pair[1]}
    if kind == "pair":
        raise MissingColumn(
            f"no columns for 'a' and 'b'; {_columns(columns)}: name them with --fields a=COLUMN,b=COLUMN"
        )
    return _required("text", _find("text", columns), columns)


def _tagged(kind: str, columns: tuple[str, ...], given: Mapping[str, str], labelled: bool) -> dict[str, str]:
    tokens = given.get("tokens") or _find("tokens", columns)
    text = given.get("text") or (None if tokens else _find("text", columns))
    if tokens is None and text is None:
        raise MissingColumn(
            f"no column for 'tokens' nor for 'text'; {_columns(columns)}: name them with --fields tokens=COLUMN,"
            "tags=COLUMN or --fields text=COLUMN,spans=COLUMN"
        )
    field, column, target = ("tokens", tokens, "tags") if tokens else ("text", text, "spans")
    chosen = {field: str(column)}
    if labelled and target not in given:
        chosen |= _required(target, _find(target, columns), columns)
    return chosen


def _asked(kind: str, columns: tuple[str, ...], given: Mapping[str, str], labelled: bool) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for field in ("question", "context"):
        if field not in given:
            chosen |= _required(field, _find(field, columns), columns)
    for field in ("answers", "answer_start", "is_impossible"):
        if field not in given:
            chosen |= _optional(field, _find(field, columns))
    if labelled and not {"answers", "is_impossible"} & (given.keys() | chosen.keys()):
        chosen |= _required("answers", None, columns)
    return chosen


def _pair(columns: tuple[str, ...]) -> tuple[str, str] | None:
    lower = {column.strip().lower(): column for column in columns}
    found = [(lower[a], lower[b]) for a, b in PAIRS if a in lower and b in lower]
    if len(found) > 1 and found[0] != ("a", "b"):
        options = " or ".join(f"a={a},b={b}" for a, b in found)
        raise InputError(f"several columns could be the two texts: say which with --fields {options}")
    return found[0] if found else None


def _find(field: str, columns: tuple[str, ...], taken: Iterable[str] = (), strict: bool = True) -> str | None:
    used = set(taken)
    lower = {column.strip().lower(): column for column in columns if column not in used}
    found = [lower[alias] for alias in ALIASES[field] if alias in lower]
    if strict and len(found) > 1 and found[0].lower() != field:
        raise InputError(
            f"several columns could be {field!r}: say which with --fields {field}={found[0]}, or {found[1]}"
        )
    return found[0] if found else None


def _required(field: str, column: str | None, columns: tuple[str, ...]) -> dict[str, str]:
    if column is None:
        raise MissingColumn(f"no column for {field!r}; {_columns(columns)}: name it with --fields {field}=COLUMN")
    return {field: column}


def _optional(field: str, column: str | None) -> dict[str, str]:
    return {} if column is None else {field: column}


def _columns(columns: tuple[str, ...]) -> str:
    return f"the columns are {', '.join(f'{name:.40}' for name in columns[:12]) or 'none'}"
