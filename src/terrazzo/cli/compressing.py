"""Compression to a goal, and its proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from terrazzo.cli.app import app
from terrazzo.cli.options import Fields, fields_of
from terrazzo.errors import InputError, RunError

if TYPE_CHECKING:
    from terrazzo.compression.speed import Here


class Common(TypedDict):
    """What is asked of one model as of a family."""

    held_out: str | None
    texts: str | None
    on: Here
    effort: str
    fields: dict[str, str] | None
    seed: int
    dry_run: bool


@app.command()
def compress(
    model: Annotated[Path, typer.Argument(help="What finetune wrote, or the task folder inside.")],
    data: Annotated[
        str, typer.Option(help="Labelled rows of its task to learn from: .jsonl, .csv, .conll, a data set.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    faster: Annotated[
        str | None,
        typer.Option(help="Times as fast as the same model in the fastest fp32 runtime here; 2,4,8 makes a family."),
    ] = None,
    smaller: Annotated[float | None, typer.Option(help="Times as small as the fp32 weights, on disk.")] = None,
    under: Annotated[str | None, typer.Option(help="Time of a batch, as 5ms; see --batch.")] = None,
    max_drop: Annotated[float, typer.Option(help="Points of the task's metric that may be lost.")] = 1.0,
    held_out: Annotated[
        str | None,
        typer.Option(help="Rows that the model was not fine-tuned on, to choose and to prove by; else half of --data."),
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="More rows like those to come, without answers: the small model learns by them.")
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
    from terrazzo.compression.family import compress_family
    from terrazzo.compression.goal import Goal
    from terrazzo.compression.pipeline import compress as run
    from terrazzo.compression.speed import Here

    if out is None and not dry_run:
        raise InputError("--out: name the folder to make, or ask for a --dry-run")
    factors, under_ms = factors_of(faster), None if under is None else milliseconds(under)
    goal = Goal(faster=factors[0] if factors else None, smaller=smaller, under_ms=under_ms, drop=max_drop)
    folder, on = out or Path("a-dry-run-makes-nothing"), Here(threads=threads, batch=batch, length=length)
    common = Common(
        held_out=held_out, texts=texts, on=on, effort=effort, fields=fields_of(fields), seed=seed, dry_run=dry_run
    )
    try:
        if len(factors) > 1:
            family = compress_family(model, data, factors, folder, drop=max_drop, smaller=smaller, log=say, **common)
            if family is not None and family.missed:
                raise RunError("\n".join(f"{name}: {why}" for name, why in family.missed.items()))
        else:
            run(model, data, goal, folder, log=say, **common)
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
    from terrazzo.compression.family import members
    from terrazzo.compression.proof import prove as run

    wrong: list[str] = []
    for one in members(folder) or [folder]:
        verified = run(one, model=model, data=data, held_out=held_out, here=here, log=say)
        print("\n".join([*verified.lines(), *verified.now.lines()[-1:]]))
        if verified.differing:
            wrong.append(f"{one}: measured again, {', '.join(verified.differing)} differ from proof.json")
        elif not verified.now.proved:
            wrong.append(f"{one}: the goal is not shown: {'; '.join(verified.now.why)}")
    if wrong:
        raise RunError("\n".join(wrong))


def say(line: str) -> None:
    """Print a line at once, though the output may be a file."""
    print(line, flush=True)


def factors_of(text: str | None) -> tuple[float, ...]:
    """`4`, or several factors as `2,4,8`.

    Raises:
        InputError: anything else.
    """
    if text is None:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--faster {text}: write a factor, as 4, or several for a family, as 2,4,8") from None
    if len(set(found)) < len(found):
        raise InputError(f"--faster {text}: the same factor twice")
    return found


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
