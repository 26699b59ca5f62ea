"""Compression to a goal, and its proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrazzo.cli.app import app
from terrazzo.cli.options import Fields, fields_of
from terrazzo.errors import InputError, RunError


@app.command()
def compress(
    model: Annotated[Path, typer.Argument(help="What finetune wrote, or the task folder inside.")],
    data: Annotated[
        str, typer.Option(help="Labelled rows of its task to learn from: .jsonl, .csv, .conll, a data set.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    faster: Annotated[
        float | None, typer.Option(help="Times as fast as the same model in the fastest fp32 runtime here.")
    ] = None,
    smaller: Annotated[float | None, typer.Option(help="Times as small as the fp32 weights, on disk.")] = None,
    under: Annotated[str | None, typer.Option(help="Time of a batch, as 5ms; see --batch.")] = None,
    max_drop: Annotated[float, typer.Option(help="Points of the task's metric that may be lost.")] = 1.0,
    held_out: Annotated[
        str | None,
        typer.Option(help="Rows that the model was not fine-tuned on, to choose and to prove by; else half of --data."),
    ] = None,
    effort: Annotated[str, typer.Option(help="minutes or hours: how long is searched and trained.")] = "minutes",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, say what would be done, make nothing.")] = False,
    threads: Annotated[int, typer.Option(help="Cores that one batch runs on.")] = 1,
    batch: Annotated[int | None, typer.Option(help="Texts of the timed batch; about 1,024 tokens.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of each; left out, those of the rows.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split of the rows, the search and the training.")] = 0,
    fields: Fields = None,
) -> None:
    """This model, on this machine, so many times faster, at most so much worse: with the proof."""
    from terrazzo.compression.goal import Goal
    from terrazzo.compression.pipeline import compress as run
    from terrazzo.compression.speed import Here

    if out is None and not dry_run:
        raise InputError("--out: name the folder to make, or ask for a --dry-run")
    goal = Goal(faster=faster, smaller=smaller, under_ms=None if under is None else milliseconds(under), drop=max_drop)
    try:
        run(
            model,
            data,
            goal,
            out or Path("compressed"),
            held_out=held_out,
            on=Here(threads=threads, batch=batch, length=length),
            effort=effort,
            fields=fields_of(fields),
            seed=seed,
            dry_run=dry_run,
            log=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        print("stopped" if dry_run else f"stopped; the same command goes on with {out}")
        raise SystemExit(130) from None


@app.command()
def prove(
    folder: Annotated[Path, typer.Argument(help="What compress wrote.")],
    model: Annotated[Path | None, typer.Option(help="The dense model, if it was moved.")] = None,
    data: Annotated[str | None, typer.Option(help="The rows, if they were moved.")] = None,
    held_out: Annotated[str | None, typer.Option(help="The rows held out, if they were moved.")] = None,
    here: Annotated[bool, typer.Option("--here", help="On another machine: measure anew and write its proof.")] = False,
) -> None:
    """Measure every figure of a compressed model's proof again, on this machine."""
    from terrazzo.compression.proof import prove as run

    verified = run(
        folder, model=model, data=data, held_out=held_out, here=here, log=lambda line: print(line, flush=True)
    )
    print("\n".join(verified.lines()))
    for line in verified.now.lines()[-1:]:
        print(line)
    if verified.differing:
        raise RunError(f"{folder}: measured again, {', '.join(verified.differing)} differ from proof.json")
    if not verified.now.proved:
        raise RunError(f"{folder}: the goal is not shown: {'; '.join(verified.now.why)}")


def milliseconds(text: str) -> float:
    """`5ms` or `0.2s` in milliseconds.

    Raises:
        InputError: anything else.
    """
    for unit, factor in (("ms", 1.0), ("s", 1000.0)):
        number = text.strip().removesuffix(unit)
        if number != text.strip():
            try:
                return factor * float(number)
            except ValueError:
                break
    raise InputError(f"--under {text}: write a time with its unit, as 5ms or 0.2s")
