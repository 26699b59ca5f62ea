"""Evaluation: of a fine-tuned model on labelled rows, of any model on a suite of tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from terrazzo.cli.app import app
from terrazzo.cli.options import BatchTokens, Device, Fields, Threads, fields_of, predictor_of
from terrazzo.errors import InputError


@app.command()
def evaluate(
    model: Annotated[Path | None, typer.Option(help="What finetune wrote; for a suite, any model folder.")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled rows: .jsonl, .csv, .json, .conll or a data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures; for a suite, a folder.")] = None,
    fields: Fields = None,
    worst: Annotated[int, typer.Option(help="Mistakes to show.")] = 10,
    suite: Annotated[
        str | None, typer.Option(help="glue, german, spanish, blimp, sts or a manifest of your own, instead of --data.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="The folder that holds the suite's data sets.")] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of --model: a pretraining run to draw the suite along; may be repeated."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Of a suite: quick or paper.")] = "quick",
    tasks: Annotated[str | None, typer.Option(help="Of a suite: only these tasks, e.g. rte,mrpc.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Of a suite: how many seeds.")] = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Metric with its 95 % interval, confusion table and worst examples; or a suite of tasks."""
    if (data is None) == (suite is None):
        raise InputError("evaluate takes --data FILE for a fine-tuned model, or --suite NAME with --data-root DIR")
    of_rows = {"--fields": fields, "--batch-tokens": batch_tokens}
    of_suites = {"--data-root": data_root, "--checkpoints": checkpoints, "--tasks": tasks, "--seeds": seeds}
    for option, value in (of_suites if suite is None else of_rows).items():
        if value not in (None, []):
            raise InputError(f"{option}: goes with {'--suite' if suite is None else '--data'} alone; leave it out")
    if suite is not None:
        if data_root is None:
            raise InputError("--data-root: name the folder that holds the data sets of the suite")
        _evaluate_suite(suite, model, checkpoints or [], data_root, out, profile, tasks, seeds, device, threads)
        return
    if model is None:
        raise InputError("--model: name what finetune wrote")
    _evaluate_rows(model, str(data), out, fields, worst, batch_tokens, device, threads)


def _evaluate_rows(
    model: Path,
    data: str,
    out: Path | None,
    fields: str | None,
    worst: int,
    batch_tokens: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    from terrazzo.cli.tables import show_evaluation
    from terrazzo.tasks.evaluate import evaluate_model, write_evaluation
    from terrazzo.tasks.rows import read_examples

    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file in it")
    if worst < 0:
        raise InputError(f"--worst {worst}: take 0 or more")
    predictor = predictor_of(model, device, threads)
    rows = read_examples(data, predictor.task.kind, fields_of(fields), keep_bad=True)
    result = evaluate_model(predictor, rows, batch_tokens, worst)
    show_evaluation(result)
    if out is not None:
        write_evaluation(out, result, model=str(model), data=data)


def _evaluate_suite(
    suite: str,
    model: Path | None,
    runs: list[Path],
    data_root: Path,
    out: Path | None,
    profile: str,
    tasks: str | None,
    seeds: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Try one model, or every checkpoint of some runs; written beside where the command runs unless --out says so."""
    from rich.console import Console

    if (model is None) == (not runs):
        raise InputError("--suite takes a model (--model) or pretraining runs (--checkpoints RUN), one of the two")
    chosen: dict[str, Any] = {
        "profile": profile,
        "tasks": None if tasks is None else [name.strip() for name in tasks.split(",")],
        "seeds": None if seeds is None else range(seeds),
        "device": device or "auto",
        "threads": threads,
        "progress": lambda line: print(line, file=sys.stderr, flush=True),
    }
    if model is not None:
        from terrazzo.tasks.suites import run_suite

        folder = out or Path(f"{Path(suite).stem}-{_name(model)}")
        Console().print(run_suite(suite, model, data_root, folder, **chosen).table())
        print(f"figures  {folder / 'suite.json'}\ntable    {folder / 'suite.md'}")
        return
    from terrazzo.tasks.pareto import run_pareto

    folder = out or Path(f"{Path(suite).stem}-{'-'.join(map(_name, runs))}")
    run_pareto(suite, runs, data_root, folder, **chosen)
    print(f"figures  {folder / 'pareto.json'}\npicture  {folder / 'pareto.png'}")


def _name(model: Path) -> str:
    """What a model is called: its folder, or the one around it where that is the `model` of a run."""
    path = model.resolve()
    return path.parent.name if path.name == "model" else path.name
