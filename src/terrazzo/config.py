"""Configs are frozen keyword-only dataclasses; this file turns them into JSON or TOML and back.

An unknown key is an error that suggests the nearest known one. Validation is pydantic's.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from terrazzo.errors import InputError

C = TypeVar("C")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[C]) -> type[C]:
    """Class decorator: a frozen keyword-only dataclass validated by pydantic: finite numbers, no unknown keys."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def from_dict(cls: type[C], values: Mapping[str, Any], source: str = "config") -> C:
    """Build config `cls` from plain `values`; `source` names the file in errors.

    Raises:
        InputError: an unknown key, a wrong type or a value that the config refuses, each with its dotted path.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_explain(cls, item) for item in error.errors())) from None


def to_dict(value: Any) -> Any:
    """The plain dicts, lists and scalars of a config, ready for `json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a .toml or .json config file into plain values.

    Raises:
        InputError: the file is missing, of another kind, or does not parse (with the parser's line).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text(encoding="utf-8-sig"))
        values = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix == ".json" else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: does not parse: {error}") from None
    if path.suffix != ".json":
        raise InputError(f"{path}: a config file ends in .toml or .json")
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, a config is one JSON object")
    return values


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with each `dotted.key=value` applied; values are TOML (`3e-4`, `true`, `"text"`) or bare text.

    Raises:
        InputError: an assignment without `=`, one that goes through a key that holds a plain value, or one to an item
            that a list does not have.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment}: write it as key=value, e.g. optimizer.lr=1e-3")
        *parents, last = key.strip().split(".")
        node: Any = result
        for parent in parents:
            node = node[_item(node, parent, assignment)] if isinstance(node, list) else node.setdefault(parent, {})
            if not isinstance(node, (dict, list)):
                raise InputError(f"--set {assignment}: {parent!r} holds {node!r}, which has no fields")
        node[_item(node, last, assignment) if isinstance(node, list) else last] = _literal(text.strip())
    return result


def _item(items: list[Any], text: str, assignment: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise InputError(f"--set {assignment}: {text!r} is not one of the {len(items)} items, counted from 0")
    return int(text)


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nearest(name: str, known: Iterable[str]) -> str:
    """The mend for a misspelt `name`: the nearest of `known`, or all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(options)}"


def _explain(cls: Any, item: Any) -> str:
    path = [part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    dotted = ".".join(str(part) for part in path)
    if item["type"] == "unexpected_keyword_argument":
        siblings = _field_names(cls, path[:-1])
        return f"unknown key {dotted!r}: {nearest(str(path[-1]), siblings)}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "missing" else f" (got {item['input']!r})"
    return f"{dotted}: {message}{given}" if dotted else f"{message}"


def _field_names(cls: Any, path: list[Any]) -> list[str]:
    """The keys that a config accepts at `path`, walking through dicts by any key and unions by their `kind` tag."""
    if path and typing.get_origin(cls) is dict:
        return _field_names(typing.get_args(cls)[1], path[1:])
    for candidate in _dataclasses_in(cls):
        fields = {f.name: hint for f, hint in zip(dataclasses.fields(candidate), _hints(candidate), strict=True)}
        if not path:
            return list(fields)
        head, *rest = path
        if head in fields:
            return _field_names(fields[head], rest)
        if isinstance(head, int) or head in typing.get_args(fields.get("kind")):
            return _field_names(candidate, rest)
    return []


def _hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [hints[f.name] for f in dataclasses.fields(cls)]


def _dataclasses_in(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    if isinstance(hint, types.UnionType) or typing.get_args(hint):
        return [found for arg in typing.get_args(hint) for found in _dataclasses_in(arg)]
    return []
