"""What a server writes about itself: lines to read, or JSON lines for those who collect them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal


class JsonLines(logging.Formatter):
    """A record as one line of JSON, its traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(kind: Literal["text", "json"]) -> None:
    """Write what terrazzo and the HTTP server have to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    handler.setFormatter(JsonLines() if kind == "json" else plain)
    for name, level in (("terrazzo", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
