"""From a folder of text to an encoder of your own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terrazzo.api import load as load
    from terrazzo.compression.goal import Goal as Goal
    from terrazzo.compression.pipeline import compress as compress
    from terrazzo.compression.speed import here as here

__all__ = ["Goal", "__version__", "compress", "here", "load"]
#: Where each of them comes from, imported when it is first asked for.
_SOURCES = {
    "load": "terrazzo.api",
    "Goal": "terrazzo.compression.goal",
    "compress": "terrazzo.compression.pipeline",
    "here": "terrazzo.compression.speed",
}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _SOURCES:
        return getattr(importlib.import_module(_SOURCES[name]), name)
    raise AttributeError(f"module 'terrazzo' has no attribute {name!r}")
