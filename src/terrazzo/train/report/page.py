"""RUN/report.html from what the run folder holds."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

from terrazzo.provenance import write_text_atomic
from terrazzo.train.report.cost import cost, machine
from terrazzo.train.report.course import course, evaluations, perplexity
from terrazzo.train.report.data import data, passes
from terrazzo.train.report.markup import Html, page, tag
from terrazzo.train.report.predictions import predictions
from terrazzo.train.report.recipe import config, stages
from terrazzo.train.report.record import RunRecord
from terrazzo.train.state import latest_checkpoint
from terrazzo.train.units import duration, money, percent, plural, short, whole

REPORT = "report.html"
_FAMILIES = {"bert": "BERT", "modernbert": "ModernBERT", "mosaicbert": "MosaicBERT"}


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html: one page that needs no network, for a run that has ended, goes on, or was cut short.

    Raises:
        InputError: not a run folder, or a damaged file in it, which is named.
    """
    path = Path(run)
    record = RunRecord.read(path)
    style = files("terrazzo.train.report").joinpath("style.css").read_text(encoding="utf-8")
    title = path.resolve().name
    write_text_atomic(path / REPORT, page(f"{title} – terrazzo", style, _body(title, record)))
    return path / REPORT


def _body(title: str, run: RunRecord) -> Html:
    parts = [
        course(run),
        None if run.is_task else predictions(run),
        data(run),
        evaluations(run),
        stages(run),
        cost(run) if run.steps else None,
        machine(run),
        config(run),
    ]
    return tag("main", _header(title, run), *parts)


def _header(title: str, run: RunRecord) -> Html:
    return tag(
        "header",
        tag("p", "terrazzo run", class_="kind"),
        tag("h1", title),
        tag("p", _what(run), " ", _result(run), class_="verdict"),
        _standing(run),
        _figures(run),
    )


def _what(run: RunRecord) -> str:
    """What was trained, on what, for how long, where."""
    model = run.stages[0].get("model", {}) if run.stages else {}
    if model.get("kind") == "init":
        family = str(model.get("family"))
        name = f"{_FAMILIES.get(family, family)} {model.get('size')}"
    else:
        name = f"The encoder {model.get('path', '')}"
    size = f" ({short(run.parameters)} parameters)" if run.parameters else ""
    if not run.steps:
        return f"{name}{size}, not trained yet."
    if run.is_task:
        task, rows = run.workload.get("task", {}).get("kind"), run.workload.get("train", {}).get("rows", math.nan)
        learned = f"trained for a {task} task on {plural(rows, 'row')}"
        return f"{name}{size}, {learned}, in {_spent(run)}."
    origin = " from scratch" if model.get("kind") == "init" else " further"
    amount = f"{short(run.trained_tokens)} tokens{passes(run)}"
    return f"{name}{size}, trained{origin} on {amount}, in {_spent(run)}."


def _spent(run: RunRecord) -> str:
    return f"{plural(len(run.steps), 'step')} and {duration(run.last['seconds'])} on {_where(run)}"


def _where(run: RunRecord) -> str:
    hardware = run.record.get("provenance", {}).get("hardware", {})
    processes = int(run.record.get("world_size", 1))
    if hardware.get("gpus") and run.config.get("device") != "cpu":
        return f"{processes} × {hardware['gpus'][0]}"
    cores = hardware.get("cores", "?")
    return f"{cores} CPU cores" + (f" by {processes} processes" if processes > 1 else "")


def _result(run: RunRecord) -> Html | None:
    held = run.heldout
    if not held:
        return tag("span", "It has not been evaluated on held-out documents.") if run.steps else None
    if run.metrics:
        best = max(run.evaluations, key=lambda line: line["score"] if math.isfinite(line["score"]) else -math.inf)
        words = f"{run.metrics[0]} {held['score']:.4f} on the rows that score it at the last evaluation"
        if best is not held:
            words += f", {best['score']:.4f} at the best, after step {whole(best['step'])}"
        return tag("b", f"{words}.")
    accuracy = held.get("heldout_accuracy")
    guessed = f", {percent(accuracy)} of masked tokens guessed right" if accuracy is not None else ""
    text = f"Held-out loss {held['heldout_loss']:.3f}{guessed}, perplexity {perplexity(held['heldout_loss'])}."
    return tag("b", text)


def _standing(run: RunRecord) -> Html | None:
    """A banner for a run that has not come to its end."""
    if run.finished:
        return None
    if not run.steps:
        return tag("p", "This run has not taken a step yet.", class_="banner")
    last = run.steps[-1]
    share = last.get("progress", math.nan)
    done = f", {percent(share, 0)} of stage {last.get('stage', '')}" if math.isfinite(share) else ""
    where = f"step {whole(last['step'])}{done}"
    if run.running:
        text = f"This run is going on: {where}, {duration(run.quiet_seconds)} ago. Make the report again to see more."
        return tag("p", text, class_="banner")
    checkpoint = latest_checkpoint(run.path)
    way = f"its last checkpoint is {checkpoint.path.name}; " if checkpoint else "it has no checkpoint yet; "
    text = f"This run stopped before its end, after {where}, {duration(run.quiet_seconds)} ago: {way}go on with "
    command = (
        "the command that began it" if run.is_task else tag("code", f"terrazzo pretrain --out {run.path} --resume")
    )
    return tag("p", text, command, class_="banner bad")


def _figures(run: RunRecord) -> Html | None:
    """The numbers that people ask for first."""
    if not run.steps:
        return None
    held, spent = run.heldout, run.last["seconds"]
    share = run.peak_share()
    figures = [("training loss", f"{run.steps[-1]['loss']:.3f}")]
    if run.metrics:
        figures = [(run.metrics[0], f"{held['score']:.4f}"), ("held-out loss", f"{held['heldout_loss']:.3f}")]
    elif held:
        figures = [("held-out loss", f"{held['heldout_loss']:.3f}"), ("perplexity", perplexity(held["heldout_loss"]))]
    if "heldout_accuracy" in held:
        figures.append(("accuracy", percent(held["heldout_accuracy"])))
    figures += [
        ("tokens", short(run.trained_tokens)),
        ("time", duration(spent)),
        ("tokens/s", short(run.trained_tokens / run.total("step_seconds"))),
    ]
    if math.isfinite(share):
        figures.append(("of peak", percent(share, 0)))
    if run.price is not None:
        figures.append(("cost", money(spent / 3600 * run.price)))
    return tag("div", *(tag("div", tag("b", v), tag("span", k)) for k, v in figures), class_="figures")
