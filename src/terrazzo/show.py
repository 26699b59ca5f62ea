"""What commands print: progress of preparation, tables of a corpus and of a plan."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from terrazzo.data import Corpus
from terrazzo.tasks.understood import RowSet, Understanding
from terrazzo.train import Plan
from terrazzo.train.units import duration, money, short

Report = Callable[[str, int, int | None, str], None]


@contextmanager
def stage_progress() -> Iterator[Report]:
    """A callback (stage, done, total, note) that draws bars on a terminal and plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield report


def _plain_lines(every: float = 5.0) -> Report:
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        if now - last.get(stage, -every) < every and done != total:
            return
        last[stage] = now
        print(
            f"{stage}: {done:,}{f' of {total:,}' if total is not None else ''} {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    return report


def show_corpus(corpus: Corpus) -> None:
    """Print what a data folder holds."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, split in (("training", corpus.train), ("held out", corpus.heldout)):
        table.add_row(label, f"{split.num_documents:,} documents, {split.num_tokens:,} tokens")
    table.add_row("vocabulary", f"{corpus.vocab_size:,}")
    table.add_row("folder", str(corpus.path))
    Console().print(table)


def show_plan(plans: Sequence[Plan]) -> None:
    """Print a forecast, a column a stage."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for plan in plans:
        table.add_column(plan.name, justify="right")
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("parameters", lambda p: f"{p.parameters / 1e6:.1f} M"),
        ("steps", lambda p: f"{p.steps:,}"),
        ("tokens", lambda p: short(p.tokens)),
        ("passes over the data", lambda p: f"{p.epochs:.2f}"),
        ("FLOPs", lambda p: f"{p.flops:.2e}"),
        ("seconds a step", lambda p: f"{p.step_seconds:.3g}"),
        ("share of peak", lambda p: f"{p.share_of_peak:.0%} of {p.peak / 1e9:,.0f} GFLOP/s"),
        ("step and peak", lambda p: "measured here" if p.measured else "assumed from the datasheet"),
        ("duration", lambda p: duration(p.seconds)),
        ("micro-batch", lambda p: f"{p.micro_tokens:,} tokens"),
        ("memory", lambda p: f"{p.memory_bytes / 2**30:.1f} GiB"),
        ("free here", lambda p: f"{p.available_bytes / 2**30:.1f} GiB" if p.measured else "-"),
        ("cost", lambda p: "set price_per_hour" if p.cost is None else money(p.cost)),
    ]
    for label, value in rows:
        table.add_row(label, *(value(plan) for plan in plans))
    Console().print(table)


_CLASSES_SHOWN = 12


def show_understanding(understood: Understanding) -> None:
    """Print what was understood of labelled rows: sizes, lengths, classes, warnings."""
    console = Console()
    sets = [understood.train] + ([understood.dev] if understood.dev is not None else [])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(understood.kind)
    for name in ("train", "eval")[: len(sets)]:
        table.add_column(name, justify="right")
    for label, value in _ROW_FACTS:
        cells = [value(rows) for rows in sets]
        if any(cells):
            table.add_row(label, *cells)
    for row in _class_rows(sets):
        table.add_row(*row)
    console.print(table)
    if understood.ignored:
        console.print(f"columns not used: {escape(', '.join(understood.ignored))}")
    for warning in understood.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")


_ROW_FACTS: list[tuple[str, Callable[[RowSet], str]]] = [
    ("rows", lambda r: f"{r.rows:,}"),
    ("that cannot be used", lambda r: f"{r.bad:,}" if r.bad else ""),
    ("windows", lambda r: f"{r.documents:,}" if r.documents > r.rows else ""),
    ("tokens a row, median", lambda r: f"{r.lengths.median:,}" if r.lengths else ""),
    ("95 of 100 have at most", lambda r: f"{r.lengths.p95:,}" if r.lengths else ""),
    ("longest", lambda r: f"{r.lengths.longest:,}" if r.lengths else ""),
    ("cut", lambda r: f"{r.truncated:,} ({r.truncated_share:.1%})"),
    ("values, low / mean / high", lambda r: " / ".join(f"{value:.3g}" for value in r.values or ())),
    ("words", lambda r: f"{r.words:,}" if r.words is not None else ""),
    ("without an answer", lambda r: f"{r.unanswerable:,}" if r.unanswerable is not None else ""),
]


def _class_rows(sets: Sequence[RowSet]) -> list[list[str]]:
    """A line a class: its rows in each set and their share."""
    lines: list[list[str]] = []
    for title, counted in (("problem", [r.problems or {} for r in sets]), ("class", [r.classes or {} for r in sets])):
        names = list(dict.fromkeys(name for counts in counted for name in counts))
        for name in names[:_CLASSES_SHOWN]:
            found = [counts.get(name, 0) for counts in counted]
            shares = [f"{n:,} ({n / max(1, r.stretches or r.rows):.1%})" for n, r in zip(found, sets, strict=True)]
            lines.append([escape(f"{title} {name:.40}"), *shares])
        if len(names) > _CLASSES_SHOWN:
            rest = [sum(counts.get(name, 0) for name in names[_CLASSES_SHOWN:]) for counts in counted]
            lines.append([f"{len(names) - _CLASSES_SHOWN:,} more, together", *(f"{count:,}" for count in rest)])
    return lines
