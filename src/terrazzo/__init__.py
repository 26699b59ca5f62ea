"""From a folder of text to an encoder of your own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terrazzo.api import load as load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("terrazzo.api").load
    raise AttributeError(f"module 'terrazzo' has no attribute {name!r}")
