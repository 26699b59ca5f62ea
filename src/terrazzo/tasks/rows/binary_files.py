"""Rows of parquet files and of data sets from the Hugging Face hub, classes by their names."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terrazzo.data.sources import pyarrow
from terrazzo.errors import InputError
from terrazzo.tasks.rows.record import Record


def parquet(path: Path) -> Iterator[Record]:
    """The rows of a parquet file; class numbers become names where the file's metadata has them.

    Raises:
        InputError: no such file, a damaged one, or pyarrow is not installed.
    """
    arrow = pyarrow(str(path))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = importlib.import_module("pyarrow.parquet").read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged, or not a parquet file ({error}); fetch it again") from None
    stored = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = class_names(stored.get("info", {}).get("features") or {})
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.to_batches())
    yield from _records(rows, names, str(path))


def hub(name: str, split: str | None) -> Iterator[Record]:
    """The rows of `owner/name[:config][:split]`; the split is `train` unless named.

    Raises:
        InputError: `datasets` is not installed, or the hub does not give the data set out.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such file; to read it as a data set from the Hugging Face hub: pip install 'terrazzo[data]'"
        ) from None
    repository, *rest = name.split(":")
    chosen = split or (rest.pop() if rest else "train")
    try:
        rows = datasets.load_dataset(repository, *rest, split=chosen)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: neither a file nor a data set that the hub gives out ({error}); check the name and the network"
        ) from None
    yield from _records(rows, class_names(rows.features.to_dict()), f"{name}:{chosen}")


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names behind class numbers, by column, from the description of a data set's features."""
    inner = {column: _inner(feature) for column, feature in features.items()}
    return {column: feature["names"] for column, feature in inner.items() if feature.get("_type") == "ClassLabel"}


def _inner(feature: Any) -> Mapping[str, Any]:
    while isinstance(feature, list) or (isinstance(feature, Mapping) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature if isinstance(feature, Mapping) else {}


def _records(rows: Any, names: Mapping[str, list[str]], name: str) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        values = {column: _named(value, names[column]) if column in names else value for column, value in row.items()}
        yield Record(where=f"{name}, row {number}", values=values)


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    # -1 is the hub's mark of a row without a label
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
