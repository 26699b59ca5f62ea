"""What evaluate and finetune print."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from terrazzo.tasks.evaluate import Confusion, Evaluation, headline
from terrazzo.tasks.finetune_record import FailedRun, FinetuneResult, RunOutcome
from terrazzo.train.units import duration, plural

PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "bold", "title_justify": "left"}
_MOST_PARTS = 20


def show_evaluation(result: Evaluation, console: Console | None = None) -> None:
    """Print an evaluation: the metric with its interval, tables, worst mistakes."""
    console = console or Console()
    console.print(f"[bold]{result.main}  {_figure(result.value)}[/]  {_interval(result)}, {result.rows:,} rows")
    others = [f"{name} {_figure(value)}" for name, value in headline(result.scores, result.main, result.groups)]
    if result.calibration_error is not None:
        others.append(f"calibration error {_figure(result.calibration_error)}")
    if others:
        console.print(", ".join(others))
    for line in _remarks(result):
        console.print(line, style="yellow", markup=False)
    tables = [
        _confusion(result.confusion, console.width) if result.confusion is not None else None,
        _groups(result.groups) if result.groups else None,
        _mistakes(result) if result.worst else None,
    ]
    for table in filter(None, tables):
        console.print()
        console.print(table)


def _interval(result: Evaluation) -> str:
    return f"(95 % interval {_figure(result.low)} to {_figure(result.high)})"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _remarks(result: Evaluation) -> list[str]:
    """What the numbers do not say: rows that were cut, left out or refused."""
    remarks = []
    if result.truncated:
        remarks.append(f"{result.truncated:,} rows are longer than the model reads; their ends were cut off")
    if result.without_answer:
        remarks.append(f"{result.without_answer:,} rows without an answer were left out")
    if result.bad:
        first = result.bad[0]
        remarks.append(f"{len(result.bad):,} bad rows; the first: {first.where}: {first.message}")
    if result.unknown_labels:
        names = ", ".join(f"{name!r} ({rows:,})" for name, rows in list(result.unknown_labels.items())[:5])
        remarks.append(f"labels that the model does not know count as wrong: {names}")
    return remarks


def _confusion(confusion: Confusion, width: int) -> Table:
    """The whole table where it fits, else the commonest mistakes."""
    longest = max(map(len, confusion.classes), default=0)
    if longest + sum(max(len(name), 4) + 2 for name in confusion.classes) > width:
        table = Table("right", "said", title="commonest confusions", **PLAIN)
        table.add_column("rows", justify="right")
        for right, said, count in confusion.pairs():
            table.add_row(escape(right), escape(said), f"{count:,}")
        return table
    table = Table("right \\ said", title="confusion", **PLAIN)
    for name in confusion.classes:
        table.add_column(escape(name), justify="right")
    for i, (name, row) in enumerate(zip(confusion.classes, confusion.counts, strict=True)):
        shown = [f"{count:,}" if count else "·" for count in row]
        cells = [f"[bold]{cell}[/]" if i == j else cell for j, cell in enumerate(shown)]
        table.add_row(escape(name), *cells)
    return table


def _groups(groups: Mapping[str, Mapping[str, float]]) -> Table:
    names = list(dict.fromkeys(name for part in groups.values() for name in part))
    table = Table("part", title="parts", **PLAIN)
    for name in names:
        table.add_column(name, justify="right")
    for part, values in list(groups.items())[:_MOST_PARTS]:
        cells = [f"{values[n]:,.0f}" if n == "rows" else _figure(values[n]) if n in values else "–" for n in names]
        table.add_row(escape(part), *cells)
    if len(groups) > _MOST_PARTS:
        table.caption = f"and {len(groups) - _MOST_PARTS} more"
    return table


def _mistakes(result: Evaluation) -> Table:
    table = Table(title="worst mistakes", **PLAIN)
    table.add_column("loss", justify="right")
    for name in ("right", "said"):
        table.add_column(name, max_width=28)
    table.add_column("where, text")
    for mistake in result.worst:
        texts = " | ".join(filter(None, (mistake.problem, *mistake.texts)))
        place = f"[dim]{escape(mistake.where.rpartition('/')[2])}[/] " if mistake.where else ""
        table.add_row(f"{mistake.loss:.2f}", escape(mistake.right), escape(mistake.said), place + escape(texts))
    return table


def run_line(run: RunOutcome) -> str:
    """What one run of a fine-tuning came to."""
    came_to = f"failed at {run.error}" if isinstance(run, FailedRun) else f"{run.metric} {_figure(run.score)}"
    return f"learning rate {run.lr:g}, seed {run.seed}: {came_to} in {duration(run.seconds)}"


def show_finetune(result: FinetuneResult, console: Console | None = None) -> None:
    """Print what a fine-tuning came to, a row a learning rate."""
    table = Table("learning rate", **PLAIN)
    for name in (result.metric, "± deviation", "95 % interval", "of each seed"):
        table.add_column(name, justify="right")
    for lr, spread in result.rates.items():
        scores = " ".join([_figure(run.score) for run in result.runs if run.lr == lr] + _failed(result, lr))
        table.add_row(
            f"{lr:g}{'  chosen' if lr == result.lr and len(result.rates) > 1 else ''}",
            _figure(spread.mean),
            "one seed" if spread.std is None else _figure(spread.std),
            "–" if spread.low is None or spread.high is None else f"{_figure(spread.low)} to {_figure(spread.high)}",
            scores,
        )
    for lr in dict.fromkeys(run.lr for run in result.failed if run.lr not in result.rates):
        table.add_row(f"{lr:g}", "–", "–", "–", " ".join(_failed(result, lr)))
    console = console or Console()
    console.print(table)
    for run in result.failed:
        console.print(run_line(run), style="yellow", markup=False, highlight=False)
    console.print(
        f"the model is that of seed {result.seed} at {result.lr:g} ({result.metric} {_figure(result.score)}); "
        f"{plural(len(result.runs), 'run')} in {duration(result.seconds)}"
    )


def _failed(result: FinetuneResult, lr: float) -> list[str]:
    return ["failed" for run in result.failed if run.lr == lr]
