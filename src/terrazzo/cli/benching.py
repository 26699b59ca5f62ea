"""Runtimes measured on the person's own texts, from the command line."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terrazzo.cli.app import app
from terrazzo.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from terrazzo.runtime.bench import Figures
    from terrazzo.runtime.contract import Precision

#: Texts that are run at most: enough for a steady rate.
_MOST_TEXTS = 600
_TOO_FEW = "half are too few to set its ranges: give at least 128 texts"


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="Any model folder.")],
    texts: Annotated[Path, typer.Option(help="Texts like those to come: one a line, or .jsonl with a field text.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Only this one: torch, openvino or onnx.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this one: fp32, bf16 or int8.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turns.")] = 5,
) -> None:
    """Every runtime and precision on this machine: texts/s, latency, memory, start, agreement with fp32."""
    from rich.console import Console

    from terrazzo.checkpoint.atomic import unwound_by_sigterm
    from terrazzo.config import to_dict
    from terrazzo.provenance import provenance, write_json_atomic
    from terrazzo.runtime.bench import measure, recommendation

    if rounds < 1:
        raise InputError(f"--rounds {rounds}: take at least 1")
    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file}: is a folder; name a file in it")
    console, rows = Console(), read_texts(texts)
    with unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix="terrazzo-bench-") as name:
        work = Path(name)
        judged, calibration = _split(rows, work)
        if calibration is None and precision in (None, "int8"):
            console.print(f"int8 is left out: of {len(rows):,} texts, {_TOO_FEW}", style="yellow", highlight=False)
        folders, left_out = _exported(model, work, calibration, runtime, precision, console)
        console.print(f"[dim]{len(rows):,} texts, {rounds} rounds in turns[/]")
        worker = [sys.executable, "-m", "terrazzo.cli.bench_worker", str(work / "texts.jsonl")]
        figures, failed = measure(folders, worker, judged, rounds)
    console.print(table(figures))
    for what, why in {**left_out, **failed}.items():
        console.print(f"left out: {what}: {why}", style="yellow", markup=False, highlight=False)
    said = recommendation(figures, str(model), str(texts))
    for line in said:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        values = {"model": str(model), "texts": len(rows), "rounds": rounds, "rows": to_dict(figures)}
        write_json_atomic(
            json_file, {**values, "left_out": {**left_out, **failed}, "recommended": said, "provenance": provenance()}
        )


def read_texts(file: Path) -> list[str]:
    """The texts of a file, different and not empty, shuffled; at most as many as a steady rate needs.

    Raises:
        InputError: the file cannot be read, has bad rows, or no text.
    """
    from terrazzo.tasks.rows import read_examples

    rows = list(
        dict.fromkeys(row.text for row in read_examples(str(file), "label", labelled=False) if row.text.strip())
    )
    if not rows:
        raise InputError(f"{file}: has no text")
    random.Random(0).shuffle(rows)
    return rows[:_MOST_TEXTS]


def _split(rows: Sequence[str], work: Path) -> tuple[int, Path | None]:
    """Write the texts; how many at the end calibration does not see, and the file of those it does where they do."""
    from terrazzo.runtime.quantise import LEAST_TEXTS

    lines = [json.dumps(text, ensure_ascii=False) for text in rows]
    (work / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    half = len(rows) // 2
    if half < LEAST_TEXTS:
        return len(rows), None
    calibration = work / "calibration.jsonl"
    seen = [json.dumps({"text": text}, ensure_ascii=False) for text in rows[:half]]
    calibration.write_text("\n".join(seen) + "\n", encoding="utf-8")
    return len(rows) - half, calibration


def _exported(
    model: Path, work: Path, calibration: Path | None, runtime: str | None, precision: str | None, console: Console
) -> tuple[dict[tuple[str, Precision], Path], dict[str, str]]:
    """A folder for every runtime and precision that can be had here, and why others cannot."""
    from terrazzo.runtime.building import RUNTIMES
    from terrazzo.runtime.machine import this_machine
    from terrazzo.tasks.export import export

    asked = [(name, kind) for kind, names in RUNTIMES.items() for name in names]
    wanted = [(name, kind) for name, kind in asked if runtime in (None, name) and precision in (None, kind)]
    if not wanted:
        raise InputError(f"--runtime {runtime} --precision {precision}: known: {', '.join(map(' '.join, asked))}")
    folders: dict[tuple[str, Precision], Path] = {}
    left_out: dict[str, str] = {}
    for name, kind in dict.fromkeys([("torch", "fp32"), *wanted]):  # what the others are compared with
        what = f"{name} {kind}"
        if kind == "bf16" and not this_machine().has_bf16:
            left_out[what] = "this CPU has no bf16 products"
            continue
        if kind == "int8" and calibration is None:
            left_out[what] = _TOO_FEW
            continue
        console.print(f"[dim]making {what}[/]")
        try:
            out = work / what.replace(" ", "-")
            folders[name, kind] = export(model, out, name, kind, calibration if kind == "int8" else None).folder
        except InputError as error:
            if (name, kind) == ("torch", "fp32"):
                raise
            left_out[what] = str(error)
    return folders, left_out


def table(figures: Sequence[Figures]) -> Table:
    """The figures, the fastest first."""
    from rich.table import Table

    from terrazzo.cli.tables import PLAIN

    shown = Table(**PLAIN)
    shown.add_column("runtime", no_wrap=True)
    for column in ("texts/s", "of rounds", "p50 ms", "p95 ms", "MB", "start s", "cosine", "least"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in figures:
        cells = [f"{row.texts_per_second:,.0f}", f"{row.slowest:,.0f}–{row.fastest:,.0f}"]
        cells += [f"{value:.1f}" for value in (row.p50_ms, row.p95_ms)]
        cells += [f"{row.memory_bytes / 1e6:,.0f}", f"{row.start_seconds:.1f}"]
        shown.add_row(row.name, *cells, f"{row.cosine_mean:.4f}", f"{row.cosine_min:.4f}")
    return shown
