"""RUN/report.html from what the run folder holds."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

from terrazzo.provenance import write_text_atomic
from terrazzo.train.report import sections
from terrazzo.train.report.data import data, passes
from terrazzo.train.report.markup import Html, join, page, tag
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
        sections.course(run),
        sections.predictions(run),
        data(run),
        sections.evaluations(run),
        sections.stages(run),
        sections.cost(run) if run.steps else None,
        sections.machine(run),
        sections.config(run),
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
    origin = " from scratch" if model.get("kind") == "init" else " further"
    amount = f"{short(sections.trained_tokens(run))} tokens{passes(run)}"
    spent = f"{plural(len(run.steps), 'step')} and {duration(run.last['seconds'])}"
    return f"{name}{size}, trained{origin} on {amount}, in {spent} on {_where(run)}."


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
    guessed = (
        f", {percent(held['heldout_accuracy'])} of masked tokens guessed right" if "heldout_accuracy" in held else ""
    )
    text = f"Held-out loss {held['heldout_loss']:.3f}{guessed}, perplexity {sections.perplexity(held['heldout_loss'])}."
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
    return tag("p", text, tag("code", f"terrazzo pretrain --out {run.path} --resume"), class_="banner bad")


def _figures(run: RunRecord) -> Html | None:
    """The numbers that people ask for first."""
    if not run.steps:
        return None
    held, in_steps = run.heldout, run.total("step_seconds")
    price = sections.price_per_hour(run)
    figures = [
        ("held-out loss", f"{held['heldout_loss']:.3f}" if held else ""),
        ("accuracy", percent(held.get("heldout_accuracy", math.nan)) if held else ""),
        ("perplexity", sections.perplexity(held["heldout_loss"]) if held else f"{run.steps[-1]['loss']:.3f}"),
        ("tokens", short(sections.trained_tokens(run))),
        ("time", duration(run.last["seconds"])),
        ("tokens/s", short(sections.trained_tokens(run) / in_steps)),
        ("of peak", percent(run.peak_share(), 0) if math.isfinite(run.peak_share()) else ""),
        ("cost", money(run.last["seconds"] / 3600 * price) if price is not None else ""),
    ]
    if not held:
        figures[2] = ("training loss", f"{run.steps[-1]['loss']:.3f}")
    return tag("div", *(join(tag("div", tag("b", v), tag("span", k))) for k, v in figures if v), class_="figures")
