"""What the serving benchmarks load: exported all-MiniLM-L6-v2, alone and under four heads; and their texts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import wikipedia
from recipes.tuning import minilm
from terrazzo.checkpoint import load_model
from terrazzo.nn import Encoder
from terrazzo.tasks import Example
from terrazzo.tasks.choice import build_task
from terrazzo.tasks.model import TaskModel, save_task_model
from terrazzo.tasks.rows.examples import example_of

#: A row of each class for each head; the heads are untrained, for what they cost does not depend on what they know.
HEADS: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]] = {
    "topic": ("label", [{"text": name, "label": name} for name in ("sport", "science", "business", "world")]),
    "relevance": ("pair", [{"a": "query", "b": "document", "label": label} for label in ("no", "yes")]),
    "names": ("tag", [{"tokens": ["a", "b", "c"], "tags": ["B-PER", "B-ORG", "B-LOC"]}]),
    "likeness": ("regression", [{"a": "one", "b": "another", "score": score} for score in (0.0, 5.0)]),
}


def texts_of(root: Path | None, count: int, first: int = 0) -> list[str]:
    """Different paragraphs of English Wikipedia, cut at 800 characters; other ones for each `first` below 8.

    Of 300, a text has 77 tokens in the mean and 178 at the 95th percentile.

    Raises:
        InputError: `root` holds no enwiki folder.
    """
    paragraphs = dict.fromkeys(paragraph[:800] for paragraph in wikipedia(root, 0.006 * count))
    different = list(paragraphs)
    every = max(1, len(different) // count)
    assert first < every
    return different[first::every][:count]


def calibration(root: Path | None, work: Path, count: int = 300) -> list[str]:
    """Options of `terrazzo export` for int8: a file of texts that no benchmark asks for."""
    file = work / "calibration.jsonl"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": text}) for text in texts_of(root, count, 1)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--precision", "int8", "--calibrate", str(file)]


def exported(source: Path, out: Path, *options: str) -> Path:
    """`terrazzo export`, unless `out` is there from an earlier run."""
    if not out.is_dir():
        command = [sys.executable, "-m", "terrazzo", "export", str(source), "--out", str(out), *options]
        subprocess.run(command, check=True)
    return out


def exported_heads(work: Path, *options: str) -> list[Path]:
    """The exported folders of four tasks with the same encoder."""
    folders = []
    for name, (kind, rows) in HEADS.items():
        source = work / "sources" / name
        if not source.is_dir():
            _save_untrained(source, kind, [example_of(row, kind) for row in rows])
        folders.append(exported(source, work / "heads" / name, *options))
    return folders


def _save_untrained(folder: Path, kind: str, examples: Sequence[Example]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    encoder = load_model(minilm())
    assert isinstance(encoder, Encoder)
    torch.manual_seed(0)
    model = TaskModel(encoder, build_task(kind, examples))
    save_task_model(folder, model, minilm() / "tokenizer.json", max_len=256)
