"""OUT/report.html from what the folder of a fine-tuning holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from terrazzo.provenance import write_text_atomic
from terrazzo.tasks.report.quality import quality
from terrazzo.tasks.report.record import FinetuneRecord
from terrazzo.tasks.report.rows import rows
from terrazzo.tasks.report.runs import course, grid
from terrazzo.train.metrics import is_evaluation
from terrazzo.train.report.cost import machine_of
from terrazzo.train.report.markup import Child, Html, aside, facts, join, page, section, tag
from terrazzo.train.units import duration, plural, short, whole, with_unit

REPORT = "report.html"
_KINDS = {
    "label": "text classification",
    "pair": "classification of text pairs",
    "regression": "regression",
    "tag": "tagging",
    "span": "answers to questions",
    "multi": "several problems",
}


def write_finetune_report(out: str | Path) -> Path:
    """Write OUT/report.html: one page that needs no network, for a fine-tuning that has ended or still goes on.

    Raises:
        InputError: not the folder of a fine-tuning, or a damaged file in it, which is named.
    """
    path = Path(out)
    record = FinetuneRecord.read(path)
    style = "".join(
        files(room).joinpath("style.css").read_text(encoding="utf-8")
        for room in ("terrazzo.train.report", "terrazzo.tasks.report")
    )
    title = path.resolve().name
    write_text_atomic(path / REPORT, page(f"{title} – terrazzo", style, _body(title, record)))
    return path / REPORT


def _body(title: str, record: FinetuneRecord) -> Html:
    made = record.record.get("provenance", {})
    fingerprint = str(record.record.get("workload", {}).get("train", {}).get("fingerprint", "?"))
    return tag(
        "main",
        _header(title, record),
        grid(record),
        course(record),
        quality(record),
        rows(record),
        _cost(record),
        machine_of(made, fingerprint),
        _config(record),
    )


def _header(title: str, record: FinetuneRecord) -> Html:
    banner = "Some runs of this fine-tuning have not ended. The command that began it goes on with them: "
    command = tag("code", f"terrazzo finetune … --out {record.path}")
    return tag(
        "header",
        tag("p", "terrazzo fine-tuning", class_="kind"),
        tag("h1", title),
        tag("p", _what(record), " ", _outcome(record), class_="verdict"),
        tag("p", banner, command, class_="banner bad") if not record.result else None,
        _figures(record),
    )


def _what(record: FinetuneRecord) -> str:
    """What was trained, on what, how often."""
    config, understood = record.config, record.understood
    counted = understood["train"]
    name = _KINDS.get(str(config["task"]), str(config["task"]))
    classes = counted.get("classes")
    said = f" with {plural(len(classes), 'label' if config['task'] == 'tag' else 'class')}" if classes else ""
    rates = {lr for lr, _ in record.lines}
    runs = plural(len(record.lines), "run")
    grid_words = f" at {plural(len(rates), 'learning rate')}" if len(rates) > 1 else ""
    model = Path(str(config["model"]))
    origin = model.parent.name if model.name == "model" else model.name
    return f"{origin}, fine-tuned for {name}{said} on {plural(counted['rows'], 'row')}: {runs}{grid_words}."


def _outcome(record: FinetuneRecord) -> Html | None:
    result = record.result
    if not result:
        return None
    seeds = sum(run["lr"] == result["lr"] for run in result["runs"])
    text = f"{result['metric']} {result['mean']:.4f}"
    if result["std"] is not None:
        text += f" ± {result['std']:.4f} over {seeds} seeds"
        text += f" (95 % interval of the mean {result['low']:.4f} to {result['high']:.4f})"
    return tag("b", f"{text}.")


def _figures(record: FinetuneRecord) -> Html | None:
    """The numbers that people ask for first."""
    result = record.result
    if not result:
        return None
    figures = [
        (f"{result['metric']} of the model", f"{result['score']:.4f}"),
        ("learning rate", f"{result['lr']:g}"),
        ("seed", whole(result["seed"])),
        ("time", duration(result["seconds"])),
    ]
    error = record.evaluation.get("calibration_error")
    if error is not None:
        figures.append(("calibration error", f"{error:.3f}"))
    return tag("div", *(tag("div", tag("b", v), tag("span", k)) for k, v in figures), class_="figures")


def _cost(record: FinetuneRecord) -> Html:
    steps = [line for lines in record.lines.values() for line in lines if not is_evaluation(line)]
    seconds = sum(line["step_seconds"] for line in steps)
    tokens = sum(line["step_tokens"] for line in steps)
    spent = record.result.get("seconds", math.nan)
    padding = sum(line.get("padding_saved", 0.0) for line in steps) / max(1, len(steps))
    pairs: list[tuple[str, Child]] = [
        ("time", join(duration(spent), aside(f"{duration(seconds)} in steps, the rest in evaluations and files"))),
        ("computed", join(with_unit(sum(line.get("flops", 0.0) for line in steps), "FLOP"))),
        ("tokens", short(tokens)),
        ("throughput", f"{short(tokens / seconds if seconds else math.nan)} tokens/s"),
        ("padding left out", f"{100 * padding:.0f} % of the places that padded batches would have"),
    ]
    return section("Cost", facts(pairs))


def _config(record: FinetuneRecord) -> Html:
    """What differs from the defaults is not told apart: every field, folded."""
    config = json.dumps(record.config, indent=2, ensure_ascii=False)
    task: Mapping[str, Any] = record.record.get("workload", {}).get("task", {})
    learned = json.dumps(task, indent=2, ensure_ascii=False)
    return section(
        "Config",
        tag("details", tag("summary", "Every field, as it was resolved"), tag("pre", config)),
        tag("details", tag("summary", "The task that the rows make"), tag("pre", learned)),
    )
