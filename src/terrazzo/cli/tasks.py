"""Tasks: finetune, predict, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from terrazzo.cli.app import app
from terrazzo.errors import InputError

_Model = Annotated[Path, typer.Option(help="What finetune wrote, or the task folder inside.")]
_Fields = Annotated[
    str | None,
    typer.Option(help="Columns that are called otherwise: text=tweet,label=mood. By number without a header."),
]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; the GPU if there is one.")]
_Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
_BatchTokens = Annotated[int, typer.Option(help="Tokens that run at a time.")]


@app.command()
def predict(
    model: _Model,
    fields: _Fields = None,
    batch_tokens: _BatchTokens = 16_384,
    device: _Device = None,
    threads: _Threads = None,
) -> None:
    """Answer JSON lines on standard input with JSON lines on standard output; a bad row is answered with its error."""
    from terrazzo.tasks.predict import result_dict
    from terrazzo.tasks.rows import read_lines

    predictor = _predictor(model, device, threads)
    rows = read_lines(sys.stdin.buffer, predictor.task.kind, fields_of(fields))
    count, bad = 0, []
    for result in predictor.stream(rows, batch_tokens):
        count += 1
        bad += [result.error] if result.error is not None else []
        print(json.dumps(result_dict(result), ensure_ascii=False))
    sys.stdout.flush()  # while a full disk can still be told
    if bad:
        print(f"{len(bad):,} of {count:,} rows could not be answered; the first: {bad[0]}", file=sys.stderr)


@app.command()
def evaluate(
    model: _Model,
    data: Annotated[str | None, typer.Option(help="Labelled rows: .jsonl, .csv, .json, .conll or a data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON; for a suite, a folder.")] = None,
    fields: _Fields = None,
    worst: Annotated[int, typer.Option(help="Mistakes to show.")] = 10,
    suite: Annotated[str | None, typer.Option(help="glue, german, spanish, blimp or sts, instead of --data.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the suite's data sets.")] = None,
    checkpoints: Annotated[
        list[Path] | None, typer.Option(help="Pretraining runs to draw a suite's quality along; may be repeated.")
    ] = None,
    batch_tokens: _BatchTokens = 16_384,
    device: _Device = None,
    threads: _Threads = None,
) -> None:
    """Metric with its 95 % interval, confusion table and worst examples; or a suite of tasks."""
    if (data is None) == (suite is None):
        raise InputError(
            "evaluate takes either --data FILE, for a fine-tuned model, or --suite NAME with --data-root DIR"
        )
    if suite is not None:
        raise InputError("--suite: not here yet")
    from terrazzo.cli.tables import show_evaluation
    from terrazzo.tasks.evaluate import evaluate_model, write_evaluation
    from terrazzo.tasks.rows import read_examples

    predictor = _predictor(model, device, threads)
    rows = read_examples(str(data), predictor.task.kind, fields_of(fields), keep_bad=True)
    result = evaluate_model(predictor, rows, batch_tokens, worst)
    show_evaluation(result)
    if out is not None:
        write_evaluation(out, result, model=str(model), data=str(data))


def fields_of(text: str | None) -> dict[str, str]:
    """`text=tweet,label=mood` as a mapping.

    Raises:
        InputError: a part without `=`.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for name, equals, column in pairs:
        if not equals or not column.strip():
            raise InputError(f"--fields {name}: write it as field=column, e.g. --fields text=tweet,label=mood")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _predictor(model: Path, device: str | None, threads: int | None) -> Any:
    import torch

    import terrazzo
    from terrazzo.tasks.model import HOW_TO_FINETUNE

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = terrazzo.load(model, device or ("cuda" if torch.cuda.is_available() else None))
    if loaded.predictor is None:
        raise InputError(f"{model}: a model without the head of a task: {HOW_TO_FINETUNE}")
    return loaded.predictor
