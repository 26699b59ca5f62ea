"""What a server is told: addresses, budgets and limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from terrazzo.config import config
from terrazzo.errors import InputError

Whole = Annotated[int, Field(ge=1)]
#: Seconds; waits that are much longer overflow the clocks of the system.
_DAY = 86_400


@config
class Settings:
    """The settings of one server.

    Args:
        host: address to listen on; only this machine reaches the default.
        port: TCP port; 0 takes a free one.
        api_key_file: one key a line; None lets everybody in.
        allow_origins: addresses such as https://example.org whose pages may call the server; none but its own if empty.
        max_batch_tokens: tokens that run together, padding counted; None takes what the runtime says is fastest.
        max_queue_tokens: tokens that may wait for one encoder; beyond it requests are refused with a time to come back.
        max_wait: seconds that a batch which is not full waits for company.
        max_texts: texts, documents or rows of one request.
        max_body_bytes: of one request.
        device: where PyTorch runs; None is the CPU.
        threads: processor cores for the models; None takes those that this process may use.
        drain_seconds: how long requests under way have to end when the server is told to stop.
        reload_seconds: how often folders are looked at for a replacement; 0 never.
        access_log: "json" writes a line a request on standard output.
        warm_up: run a few shapes before the first request.
        page: serve the page at /.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    api_key_file: Path | None = None
    allow_origins: tuple[str, ...] = ()
    max_batch_tokens: Whole | None = None
    max_queue_tokens: Whole = 262_144
    max_wait: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_texts: Whole = 2048
    max_body_bytes: Annotated[int, Field(ge=1, le=2**30)] = 8 * 2**20
    device: str | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    drain_seconds: Annotated[float, Field(ge=0, le=_DAY)] = 30.0
    reload_seconds: Annotated[float, Field(ge=0, le=_DAY)] = 1.0
    access_log: Literal["none", "json"] = "none"
    warm_up: bool = True
    page: bool = True

    def __post_init__(self) -> None:
        if not self.host:
            raise InputError("host: there is none; 127.0.0.1 is this machine alone, 0.0.0.0 every address of it")


def names_of(folders: Sequence[str | Path]) -> dict[str, Path]:
    """The folder of each model by its name: what `NAME=DIR` says, or the folder's own name.

    Raises:
        InputError: none, two of one name, an empty name, or one that is not UTF-8.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name, equals, path = str(folder).partition("=")
        if not equals or Path(folder).exists():
            name, path = Path(folder).resolve().name, str(folder)
        if not name.strip() or not path:
            raise InputError(f"{folder}: a model is given as DIR or as NAME=DIR")
        if not _is_utf8(name) or not _is_utf8(path):
            raise InputError(f"{str(folder)!r}: not UTF-8, which model names and folders must be: rename the folder")
        if name in named:
            raise InputError(f"two models are called {name!r}: {named[name]} and {path}; name one of them: NAME={path}")
        named[name] = Path(path)
    if not named:
        raise InputError("no model to serve: give one folder or several")
    return named


def _is_utf8(text: str) -> bool:
    """Whether the command line's bytes were; those that were not are halves of surrogate pairs here."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
