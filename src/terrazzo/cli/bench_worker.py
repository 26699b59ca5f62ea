"""The process that `terrazzo bench` measures a runtime in: it opens a folder and answers what standard input asks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import terrazzo
from terrazzo.api import Model
from terrazzo.provenance import peak_memory_bytes


def main(texts_file: str, folder: str) -> None:
    """Answer until the standard input ends; what libraries print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    texts = [json.loads(line) for line in Path(texts_file).read_text(encoding="utf-8").splitlines()]
    serve(terrazzo.load(folder), texts, sys.stdin, answers)


def serve(model: Model, texts: list[str], requests: TextIO, answers: TextIO) -> None:
    """One line of JSON out for each one in."""
    for line in requests:
        print(json.dumps(answer(model, texts, json.loads(line))), file=answers, flush=True)


def answer(model: Model, texts: list[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """`start`: encode a text; `run`: all of them together, then some alone; `end`: the last vectors, and memory."""
    if request["do"] == "start":
        model.encode(texts[:1])
        return {"texts": len(texts), "batch_tokens": model.runtime.batch_tokens, "streams": model.runtime.streams}
    if request["do"] == "run":
        first = request["turn"] * request["singles"]
        chosen = [texts[(first + number) % len(texts)] for number in range(request["singles"])]
        return {"seconds": _seconds(model, texts), "alone": [_seconds(model, [text]) for text in chosen]}
    judged = texts[-request["judged"] :]
    return {"vectors": model.encode(judged).tolist(), "memory_bytes": peak_memory_bytes()}


def _seconds(model: Model, texts: list[str]) -> float:
    began = time.perf_counter()
    model.encode(texts)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*sys.argv[1:])
