"""How a run went: its curves and its evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terrazzo.train.report import charts
from terrazzo.train.report.charts import Figure, Series, XAxis, chart
from terrazzo.train.report.markup import Html, join, nothing, section, table, tag
from terrazzo.train.report.record import RunRecord, column
from terrazzo.train.report.scales import smooth
from terrazzo.train.units import duration, percent, plural, short, significant, whole

AXES = (
    XAxis("tokens", "tokens", "tokens trained on"),
    XAxis("seconds", "time", "time, evaluations included", duration),
    XAxis("step", "steps", "steps", whole),
)

#: Numbers of a training line that have a chart of their own or none; a method's further numbers each get one.
_COMMON = {"step", "stage", "progress", "tokens", "step_tokens", "masked", "seconds", "step_seconds", "micro_batches"}
_COMMON |= {
    "predictions",
    "flops",
    "loss",
    "accuracy",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "peak_fraction",
    "padding_saved",
}
_FEW_ROWS = 12


def course(run: RunRecord) -> Html:
    """Loss, accuracy, learning rate, throughput and gradient norm over tokens, seconds or steps."""
    if not run.steps:
        return section("Course", nothing("No step has been taken yet."))
    missing = int((~np.isfinite(run.column("loss"))).sum())
    note = None
    if missing:
        first = next(line["step"] for line in run.steps if not math.isfinite(line["loss"]))
        text = f"The loss of {plural(missing, 'step')} is not a number, first at step {whole(first)}."
        note = tag("p", text, class_="bad")
    return section("Course", note, charts.switched(AXES, [_course_over(run, axis) for axis in AXES]))


def _course_over(run: RunRecord, axis: XAxis) -> Html:
    marks = run.boundaries(axis.key)

    def draw(figure: Figure, name: str, heldout: str = "", scale: float = 1.0, noisy: bool = True) -> Html:
        x, y = run.column(axis.key), scale * run.column(name)
        series = [Series("", x, y)]
        if noisy:
            raw = Series("", x, y, "raw", missing=name == "loss")
            series = [raw, Series("mean", x, run.by_stage(smooth, y))]
        if heldout:
            held = scale * column(run.evaluations, heldout)
            series.append(Series("held out", column(run.evaluations, axis.key), held, "heldout"))
        return chart(figure, axis, series, marks)

    each, right = ("answer", "answers right") if run.is_task else ("masked token", "masked tokens guessed right")
    loss = draw(Figure("Loss", f"nats per {each}", _three, log=True, tall=True), "loss", "heldout_loss")
    accuracy = Figure("Accuracy", f"% of {right}", _one, from_zero=True)
    heldout_accuracy = "accuracy" if run.is_task else "heldout_accuracy"
    share = Figure("Share of peak", "% of the measured matrix-product peak", _one, from_zero=True)
    padding = Figure("Padding saved", "% of the places of padded micro-batches", _one, from_zero=True)
    small = [
        *(_metric_over(run, axis, name, marks) for name in run.metrics if name != "accuracy"),
        draw(accuracy, "accuracy", heldout_accuracy, 100.0),
        draw(Figure("Learning rate", "", _compact, from_zero=True), "lr", noisy=False),
        draw(Figure("Throughput", "tokens a second", short, from_zero=True), "tokens_per_second"),
        draw(share, "peak_fraction", scale=100.0),
        draw(Figure("Gradient norm", "before clipping", from_zero=True), "grad_norm"),
        draw(padding, "padding_saved", scale=100.0) if (run.column("padding_saved") > 0).any() else Html(""),
        *(draw(Figure(name, ""), name, noisy=False) for name in _further_numbers(run)),
    ]
    return join(loss, charts.columns(*small))


def _metric_over(run: RunRecord, axis: XAxis, name: str, marks: list[tuple[float, str]]) -> Html:
    """A metric of a task, which evaluations alone have."""
    title = f"{name} on the scoring rows" + (" (decides)" if name == run.metrics[0] else "")
    series = Series("held out", column(run.evaluations, axis.key), column(run.evaluations, name), "heldout")
    return chart(Figure(title, "", _three), axis, [series], marks)


def _further_numbers(run: RunRecord) -> list[str]:
    """Numbers that a method logs beyond the common ones."""
    line = run.steps[-1]
    return [k for k, v in line.items() if k not in _COMMON and isinstance(v, (int, float))]


def evaluations(run: RunRecord) -> Html:
    """Every evaluation as a table row, folded away when there are many."""
    if not run.evaluations:
        return section("Evaluations", nothing("None yet: no held-out document has been looked at."))
    several = len(run.stages) > 1
    rows = [_evaluation(line, several, run.metrics) for line in run.evaluations]
    figures = run.metrics or ["perplexity", "accuracy"]
    head = [*(["stage"] if several else []), "step", "held-out loss", *figures, "tokens", "time"]
    numbers = range(int(several), len(head))
    if len(rows) <= _FEW_ROWS:
        return section("Evaluations", table(head, rows, numbers))
    rest = tag("details", tag("summary", f"All {len(rows)} evaluations"), table(head, rows, numbers))
    return section("Evaluations", table(head, rows[-3:], numbers), rest)


def _evaluation(line: Mapping[str, Any], with_stage: bool, metrics: Sequence[str]) -> list[str]:
    pretraining = [perplexity(line["heldout_loss"]), percent(line.get("heldout_accuracy", math.nan))]
    return [
        *([line.get("stage", "")] if with_stage else []),
        whole(line["step"]),
        f"{line['heldout_loss']:.4f}",
        *([_metric(line.get(name, math.nan)) for name in metrics] or pretraining),
        short(line.get("tokens", math.nan)),
        duration(line.get("seconds", math.nan)),
    ]


def perplexity(loss: float) -> str:
    """exp of a loss in nats; of masked tokens, not of running text."""
    return significant(math.exp(loss)) if loss < 50 else "–"


def _metric(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _one(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _compact(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
