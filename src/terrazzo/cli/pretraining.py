"""From text to an encoder: prepare, plan, pretrain, report, encode."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from terrazzo.cli.app import app
from terrazzo.errors import InputError


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="Text files, folders, or names of Hugging Face datasets.")],
    out: Annotated[Path, typer.Option(help="The data folder to make.")],
    vocab_size: Annotated[int | None, typer.Option(help="Tokens of the new vocabulary, rounded up to 64.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Use this tokenizer.json instead of training one.")] = None,
    tokenizer_kind: Annotated[str, typer.Option(help="wordpiece or bpe.")] = "wordpiece",
    preset: Annotated[str, typer.Option(help="Cleaning: english, german, tweets or raw.")] = "english",
    text_field: Annotated[str, typer.Option(help="The text's field in jsonl, csv and parquet.")] = "text",
    document: Annotated[
        str, typer.Option(help="What a document is in a text file: line, paragraph, file or auto.")
    ] = "auto",
    heldout: Annotated[float | None, typer.Option(help="Share of documents held out.")] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Drop documents this similar (MinHash), e.g. 0.8.")
    ] = None,
    lowercase: Annotated[bool | None, typer.Option(help="Fold case; the preset decides if left out.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that clean.")] = 1,
    language: Annotated[str | None, typer.Option(help="Keep documents of this language, e.g. de.")] = None,
) -> None:
    """Clean, deduplicate, tokenize: text into a data folder. Run it again to go on after an interruption."""
    from terrazzo.data import PrepareConfig
    from terrazzo.data import prepare as run_prepare
    from terrazzo.show import show_corpus, stage_progress

    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "tokenizer_kind": tokenizer_kind,
        "preset": preset,
        "text_field": text_field,
        "document": document,
        "heldout": heldout,
        "near_duplicates": near_duplicates,
        "language": language,
        "lowercase": lowercase,
        "workers": workers,
    }
    from terrazzo.config import from_dict

    config = from_dict(PrepareConfig, {k: v for k, v in options.items() if v is not None}, "prepare")
    with stage_progress() as progress:
        corpus = run_prepare(sources, out, config, progress=progress)
    show_corpus(corpus)


_Data = Annotated[Path | None, typer.Option(help="The data folder that prepare made.")]
_Size = Annotated[str | None, typer.Option(help="tiny, mini, small, base or large.")]
_Family = Annotated[str | None, typer.Option(help="mosaicbert, bert or modernbert.")]
_Budget = Annotated[str | None, typer.Option(help="10m, 2h, 20Mtok or 3000steps.")]
_Config = Annotated[Path | None, typer.Option(help="A run config in TOML or JSON.")]
_Set = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. optimizer.lr=1e-3; may be repeated.")]


@app.command()
def plan(
    data: _Data = None,
    size: _Size = None,
    family: _Family = None,
    budget: _Budget = None,
    config: _Config = None,
    assignments: _Set = None,
    hardware: Annotated[
        str | None, typer.Option(help="h200, h100 or a100; this machine is measured if left out.")
    ] = None,
) -> None:
    """FLOPs, hours, memory and cost of a run, before anything runs."""
    from terrazzo.show import show_plan
    from terrazzo.train import plan as make_plan

    run = _run_config(data, Path("unused"), size, family, budget, config, assignments)
    show_plan(make_plan(run, hardware))


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    data: _Data = None,
    size: _Size = None,
    family: _Family = None,
    budget: _Budget = None,
    config: _Config = None,
    assignments: _Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Pretrain an encoder; under torchrun the same run on several processes."""
    from terrazzo.train import default_hooks, train, write_report

    run = _resumed(out, data, assignments) if resume and not (size or family or budget or config) else None
    run = run or _run_config(data, out, size, family, budget, config, assignments)
    out = Path(run.out)
    model = train(run, resume=resume, hooks=default_hooks(run))
    if int(os.environ.get("RANK", 0)):
        return
    page = write_report(out)
    if model is None:
        print(f"stopped; go on with: terrazzo pretrain --out {out} --resume")
        raise SystemExit(130)
    print(f"model   {model}\nreport  {page}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="What pretrain or finetune wrote.")]) -> None:
    """Write RUN/report.html: curves, data statistics, samples, config and cost in one page."""
    from terrazzo.tasks.finetune_record import RECORD
    from terrazzo.tasks.report import write_finetune_report
    from terrazzo.train import write_report

    print(write_finetune_report(run) if (run / RECORD).is_file() else write_report(run))


@app.command()
def encode(
    model: Annotated[Path, typer.Option(help="A model folder, ours or a published one.")],
    pooling: Annotated[str, typer.Option(help="mean, cls or max.")] = "mean",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length 1.")] = False,
    text_field: Annotated[str, typer.Option(help="The text's field.")] = "text",
    output: Annotated[str, typer.Option("--format", help="npy (float32 [n, d]) or jsonl.")] = "npy",
) -> None:
    """Turn JSON lines on standard input into vectors on standard output."""
    import numpy as np

    import terrazzo
    from terrazzo.api import Pooling

    if output not in ("npy", "jsonl"):
        raise InputError(f"--format {output}: npy or jsonl")
    if output == "npy" and sys.stdout.isatty():
        raise InputError("vectors are binary: redirect them to a file (> vectors.npy), or use --format jsonl")
    texts = [_text_of(line, number, text_field) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip()]
    vectors = terrazzo.load(model).encode(texts, pooling=cast(Pooling, pooling), normalize=normalize)
    if output == "npy":
        np.lib.format.write_array_header_1_0(sys.stdout.buffer, np.lib.format.header_data_from_array_1_0(vectors))
        sys.stdout.buffer.write(np.ascontiguousarray(vectors).data)  # np.save wants to seek, which a pipe cannot
    else:
        for row in vectors:
            print(json.dumps([float(v) for v in row]))
    sys.stdout.flush()  # while a full disk can still be told


def _text_of(line: bytes, number: int, field: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"standard input, line {number}: not JSON ({error}); write one object with {field!r} a line"
        ) from None
    text = row if isinstance(row, str) else row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"fields: {', '.join(row)}" if isinstance(row, dict) else f"got {row!r}"
        raise InputError(
            f"standard input, line {number}: no text in field {field!r} ({found}); choose one with --text-field"
        )
    return text


def _run_config(
    data: Path | None,
    out: Path,
    size: str | None,
    family: str | None,
    budget: str | None,
    config: Path | None,
    assignments: list[str] | None,
) -> Any:
    from terrazzo.config import read_file, to_dict
    from terrazzo.train import Budget, resolve

    values = {**(read_file(config) if config else {}), "out": str(out)}
    if data is not None:
        values["data"] = str(data)
    if "data" not in values:
        raise InputError("--data: name the folder that `terrazzo prepare` made")
    options = [f"model.{key}={value}" for key, value in (("family", family), ("size", size)) if value is not None]
    if budget is not None:
        given = {key: value for key, value in to_dict(Budget.parse(budget)).items() if value is not None}
        options += [f"budget={{ {key} = {value} }}" for key, value in given.items()]
    return resolve(values, [*options, *(assignments or ())], str(config or "command line"))


def _resumed(out: Path, data: Path | None, assignments: list[str] | None) -> Any:
    from terrazzo.train import read_run, resolve

    values = {**read_run(out)["config"], "out": str(out), **({"data": str(data)} if data else {})}
    return resolve(values, assignments or (), str(out / "run.json"))
