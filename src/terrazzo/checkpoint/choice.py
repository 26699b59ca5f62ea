"""Which format a folder is in, and which one a model is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terrazzo.checkpoint.bert import BERT, MOSAIC, ROBERTA
from terrazzo.checkpoint.formats import NATIVE, Format, SpecialIds
from terrazzo.checkpoint.modernbert import MODERNBERT
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig

#: In the order in which they are tried for writing; the last one takes every shape.
FORMATS = (BERT, ROBERTA, MODERNBERT, NATIVE)


def format_of(values: Mapping[str, Any], source: str) -> Format:
    """The format of a folder with this config.json.

    Raises:
        InputError: a `model_type` that none of them reads.
    """
    model_type = values.get("model_type")
    if model_type == "bert" and "alibi_starting_size" in values:
        return MOSAIC
    for candidate in FORMATS:
        if model_type in candidate.model_types:
            return candidate
    known = ", ".join(name for candidate in FORMATS for name in candidate.model_types)
    raise InputError(
        f"{source}: field 'model_type' is {model_type!r}, an architecture that this encoder cannot be; known: {known}"
    )


def writable(config: EncoderConfig, special: SpecialIds) -> tuple[Format, dict[str, Any]]:
    """The first format that describes `config` without loss, and its config.json."""
    for candidate in FORMATS:
        values = candidate.config_json(config, special)
        if values is not None:
            return candidate, values
    raise AssertionError(f"the native format must take every config: {config}")
