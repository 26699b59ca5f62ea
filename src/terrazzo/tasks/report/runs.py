"""The runs of a fine-tuning: what each learning rate and seed came to, and on what way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terrazzo.tasks.report.record import FinetuneRecord
from terrazzo.train.metrics import is_evaluation
from terrazzo.train.report.charts import Figure, Series, XAxis, chart, columns
from terrazzo.train.report.markup import Html, nothing, section, tag

_STEPS = XAxis("step", "steps", "steps")


def grid(record: FinetuneRecord) -> Html:
    """A row a learning rate: mean, deviation, interval, every seed's score."""
    result = record.result
    if not result:
        return section("Learning rates and seeds", nothing("No result yet: it is written when every run has ended."))
    head = ["learning rate", f"mean {result['metric']}", "± deviation", "95 % interval", "of each seed"]
    body = [_rate(rate, result) for rate in result["rates"]]
    ended = {rate["lr"] for rate in result["rates"]}
    nowhere = dict.fromkeys(run["lr"] for run in result["failed"] if run["lr"] not in ended)
    body += [_rate({"lr": lr, "mean": None, "std": None, "low": None}, result) for lr in nowhere]
    top = tag("thead", tag("tr", *(tag("th", name, class_="n" if 0 < i < 4 else None) for i, name in enumerate(head))))
    note = (
        f"The model is that of seed {result['seed']} at {result['lr']:g}, the best of the chosen rate. {result['note']}"
    )
    return section(
        "Learning rates and seeds",
        tag("div", tag("table", top, tag("tbody", *body)), class_="scroll"),
        *(tag("p", _failure(run), class_="bad") for run in result["failed"]),
        tag("p", note, class_="note"),
    )


def _failure(run: Mapping[str, Any]) -> str:
    return f"Failed: learning rate {run['lr']:g}, seed {run['seed']}, at {run['error']}."


def _rate(rate: Mapping[str, Any], result: Mapping[str, Any]) -> Html:
    scores = [f"{run['score']:.4f}" for run in result["runs"] if run["lr"] == rate["lr"]]
    failed = ["failed" for run in result["failed"] if run["lr"] == rate["lr"]]
    seeds = tag("span", *(tag("span", cell) for cell in scores + failed), class_="seeds")
    interval = "–" if rate["low"] is None else f"{rate['low']:.4f} to {rate['high']:.4f}"
    cells: list[Html | str] = [
        "–" if rate["mean"] is None else f"{rate['mean']:.4f}",
        "–" if rate["mean"] is None else "one seed" if rate["std"] is None else f"{rate['std']:.4f}",
        interval,
    ]
    chosen = rate["lr"] == result["lr"] and len(result["rates"]) > 1
    first = tag("td", f"{rate['lr']:g}{' – chosen' if chosen else ''}")
    numbers = [tag("td", cell, class_="n") for cell in cells]
    return tag("tr", first, *numbers, tag("td", seeds), class_="chosen" if chosen else None)


def course(record: FinetuneRecord) -> Html | None:
    """Score and losses over the steps; the chosen learning rate's runs strong, the others faint."""
    evaluations = {key: [line for line in lines if is_evaluation(line)] for key, lines in record.lines.items()}
    steps = {key: [line for line in lines if not is_evaluation(line)] for key, lines in record.lines.items()}
    if not any(steps.values()):
        return None
    lr = record.result.get("lr", next(iter(record.lines))[0])
    metric = record.result.get("metric", "score")
    score = Figure(metric, "on the scoring rows, every run", tall=True)
    held = Figure("Loss on the scoring rows", "")
    learned = Figure("Training loss", "running mean")
    words = "Each line is a run."
    if len({rate for rate, _ in record.lines}) > 1:
        words += f" Those of the learning rate {lr:g} stand out."
    return section(
        "Course",
        tag("p", words),
        chart(score, _STEPS, _series(evaluations, "score", lr)),
        columns(
            chart(learned, _STEPS, _series(steps, "loss", lr, smooth=True)),
            chart(held, _STEPS, _series(evaluations, "heldout_loss", lr)),
        ),
    )


def _series(
    runs: Mapping[tuple[float, int], Sequence[Mapping[str, Any]]], key: str, chosen: float, smooth: bool = False
) -> list[Series]:
    series = []
    for (lr, seed), lines in sorted(runs.items(), key=lambda run: run[0][0] == chosen):
        x = np.array([line["step"] for line in lines], dtype=np.float64)
        y = np.array([line.get(key, np.nan) for line in lines], dtype=np.float64)
        if smooth and len(y):
            x, y = x, _running_mean(y)
        strong = "line" if smooth else "heldout"
        series += [Series(f"seed {seed}", x, y, strong if lr == chosen else "raw")] if len(x) else []
    return series


def _running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred mean over `share` of the values on each side."""
    half = max(1, round(share * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
