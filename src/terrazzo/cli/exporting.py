"""Models made ready to run, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrazzo.cli.app import app
from terrazzo.cli.options import Fields, fields_of


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Any model folder: what pretrain or finetune wrote, or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="The folder to make; one that was exported before is replaced.")],
    runtime: Annotated[str, typer.Option(help="auto (the fastest here), torch, openvino or onnx.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "fp32",
    calibrate: Annotated[
        Path | None, typer.Option(help="Texts, or the task's rows: .jsonl, .csv, or lines. int8 needs them.")
    ] = None,
    fields: Fields = None,
) -> None:
    """Make a model fast on this machine: every runtime measured, the fastest kept, its agreement with fp32 checked."""
    from rich.console import Console

    from terrazzo.tasks.export import export as run

    console = Console(stderr=True)

    def progress(line: str) -> None:
        if console.is_terminal:
            console.print(line, style="dim", markup=False, highlight=False)

    def log(line: str) -> None:
        print(line, flush=True)

    run(model, out, runtime, precision, calibrate, fields_of(fields), log=log, progress=progress)
