"""One contestant of `benchmarks.inference` in a process of its own: answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.inference_peers import MAX_LEN, PADDED, SENTENCE_TRANSFORMERS, Padded, SentenceTransformers, Setting
from recipes.tuning import minilm


class Contestant(Protocol):
    """Something that makes vectors of texts."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `(B, D)`, in order."""
        ...


class Ours:
    """An exported folder, as `terrazzo.load` opens it."""

    def __init__(self, folder: Path) -> None:
        import terrazzo

        self.model = terrazzo.load(folder)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `(B, D)`, in order."""
        return self.model.encode(texts, max_len=MAX_LEN)


def opened(name: str, prepared: Path, setting: Setting) -> Contestant:
    """A contestant by its name; a folder in `prepared` is one of ours."""
    if name == SENTENCE_TRANSFORMERS:
        return SentenceTransformers(minilm())
    peer = name.partition(",")[0]
    if peer in PADDED:
        return Padded(PADDED[peer][0], minilm(), prepared, setting)
    return Ours(prepared / name)


def answer(contestant: Contestant, texts: Sequence[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """`run`: seconds, wall and CPU, of so many texts from `first`; `vectors`: of the first so many."""
    if request["do"] == "vectors":
        return {"vectors": contestant.encode(texts[: request["texts"]]).tolist()}
    if isinstance(contestant, Padded) and "batch" in request:
        contestant.batch = request["batch"]
    began, cpu = time.perf_counter(), time.process_time()
    contestant.encode(texts[request["first"] : request["first"] + request["texts"]])
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def main(prepared: str, batch: str, streams: str, name: str) -> None:
    """Open and serve, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    folder = Path(prepared)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    contestant = opened(name, folder, Setting(int(batch), int(streams)))
    for line in sys.stdin:
        print(json.dumps(answer(contestant, texts, json.loads(line))), file=answers, flush=True)
