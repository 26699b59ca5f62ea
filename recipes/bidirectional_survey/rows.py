"""Labelled rows of the two tasks: GLUE's files, or a small grammar's for the smoke tier."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terrazzo.errors import InputError
from terrazzo.testing import tiny_texts

GLUE = "GLUE's original files (SST-2 and MRPC), see https://gluebenchmark.com/tasks"
Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The files of one task: `kind` as the command line has it."""

    kind: str
    train: Path
    test: Path


def glue(folder: Path, work: Path, most: int) -> dict[str, Rows]:
    """SST-2 and MRPC: `most` training rows of each at random, tested on SST-2's dev and MRPC's own test file.

    Raises:
        InputError: a file is missing or has other columns.
    """
    sst2 = [_sst2(folder / "SST-2" / f"{part}.tsv") for part in ("train", "dev")]
    mrpc = [_mrpc(folder / "MRPC" / f"msr_paraphrase_{part}.txt") for part in ("train", "test")]
    return {
        "sst2": _written(work, "sst2", "label", sst2[0], sst2[1], most),
        "mrpc": _written(work, "mrpc", "pair", mrpc[0], mrpc[1], most),
    }


def invented(work: Path, most: int) -> dict[str, Rows]:
    """Is it about a cat; do two texts end alike."""
    texts = [tiny_texts(1, seed)[0] for seed in range(2 * most)]
    one = [{"text": text, "label": str(int("cat" in text))} for text in texts]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    two = [{"a": a, "b": a if i % 2 else b, "label": str(i % 2)} for i, (a, b) in enumerate(pairs)]
    return {
        "sst2": _written(work, "sst2", "label", one[:most], one[most:], most),
        "mrpc": _written(work, "mrpc", "pair", two[: most // 2], two[most // 2 :], most),
    }


def _sst2(file: Path) -> list[Row]:
    return [{"text": text, "label": label} for text, label in _read(file, 2)]


def _mrpc(file: Path) -> list[Row]:
    return [{"a": a, "b": b, "label": label} for label, _, _, a, b in _read(file, 5)]


def _read(file: Path, columns: int) -> list[list[str]]:
    """The tab-separated rows of a file below its header; quotes mean nothing in them."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected {GLUE}")
    lines = file.read_text(encoding="utf-8-sig").splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    for number, row in enumerate(rows, start=2):
        if len(row) != columns:
            raise InputError(f"{file}, row {number}: {len(row)} columns, not {columns}; expected {GLUE}")
    return rows


def _written(work: Path, name: str, kind: str, train: Sequence[Row], test: Sequence[Row], most: int) -> Rows:
    """The task's files in `work`; the same training rows for every arm and seed."""
    chosen = random.Random(0).sample(train, min(most, len(train)))
    files = {part: work / f"{name}-{part}.jsonl" for part in ("train", "test")}
    for part, rows in (("train", chosen), ("test", test)):
        _write(files[part], rows)
    return Rows(kind=kind, **files)


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
