"""What was measured once on this machine, in a JSON file by a key; if it is lost or damaged, it is measured again."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from terrazzo.config import from_dict, to_dict
from terrazzo.provenance import write_json_atomic

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Memory(Generic[T]):
    """A kind of remembered values.

    Args:
        kind: config class of the values; name: what the file calls them; format: of the file.
        measured: what is measured again where the file is of no use, for the warning.
    """

    kind: type[T]
    name: str
    format: str
    measured: str

    def read(self, file: Path) -> dict[str, T]:
        """The values of a file by their keys; none, with a warning, where it is damaged."""
        if not file.is_file():
            return {}
        try:
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if values.get("format") != self.format:
                return {}
            return {key: from_dict(self.kind, value, str(file)) for key, value in values[self.name].items()}
        except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
            warnings.warn(f"{file}: damaged, so {self.measured} are measured again ({error!r:.120})", stacklevel=3)
            return {}

    def add(self, file: Path, key: str, value: T) -> None:
        """Keep a value beside those of the file; a file that cannot be written costs a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it was read before measuring
            values = self.read(file) | {key: value}
        try:
            write_json_atomic(file, {"format": self.format, self.name: to_dict(values)})
        except OSError as error:
            warnings.warn(f"{file}: cannot be written, so {self.measured} are measured again ({error})", stacklevel=3)
