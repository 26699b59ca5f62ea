"""What a server writes about itself: lines to read, or JSON lines for those who collect them."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Literal

log = logging.getLogger("terrazzo.serve")


class JsonLines(logging.Formatter):
    """A record as one line of JSON, its traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class AccessLog:
    """A line of JSON a request on standard output, until nobody takes them any more."""

    def __init__(self) -> None:
        self._taken = True

    def write(self, scope: MutableMapping[str, Any], path: str, status: int, seconds: float) -> None:
        """Write down one request of `seconds`; requests are answered whether this works or not."""
        if not self._taken:
            return
        client = scope.get("client")
        line = {
            "time": time.time(),
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 3),
        }
        try:
            _print_bytes(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self._taken = False
            log.error("requests are not written down any more: standard output takes no lines (%s)", error)


def _print_bytes(data: bytes) -> None:
    """Write to standard output past its buffer, which would fail once more when the process ends."""
    if sys.stdout is None:
        raise OSError("it is closed")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def log_to_stderr(kind: Literal["text", "json"]) -> None:
    """Write what terrazzo and the HTTP server have to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    handler.setFormatter(JsonLines() if kind == "json" else plain)
    for name, level in (("terrazzo", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
