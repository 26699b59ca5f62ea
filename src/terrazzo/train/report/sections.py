"""The parts of the report: what each shows of a run, and what it says where the run has nothing to show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from terrazzo.train.report import charts
from terrazzo.train.report.charts import Figure, Series, XAxis, chart
from terrazzo.train.report.markup import Html, facts, join, table, tag
from terrazzo.train.report.record import RunRecord, column
from terrazzo.train.report.scales import smooth
from terrazzo.train.units import duration, money, percent, short, significant, whole, with_unit

AXES = (
    XAxis("tokens", "tokens", "tokens trained on"),
    XAxis("seconds", "time", "time, evaluations included", duration),
    XAxis("step", "steps", "steps", whole),
)

_COMMON = {"step", "stage", "progress", "tokens", "step_tokens", "masked", "seconds", "step_seconds", "flops", "loss"}
_COMMON |= {
    "loss",
    "accuracy",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "peak_fraction",
    "micro_batches",
    "padding",
}
_MASK = re.compile(r"\[MASK\]|<mask>")
_FEW_ROWS = 12


def section(title: str, *children: Html | None) -> Html:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *children)


def nothing(text: str) -> Html:
    """What stands in place of something that this run does not have."""
    return tag("p", text, class_="none")


def course(run: RunRecord) -> Html:
    """Loss, accuracy, learning rate, throughput and gradient norm over tokens, seconds or steps."""
    if not run.steps:
        return section("Course", nothing("No step has been taken yet."))
    missing = int((~np.isfinite(run.column("loss"))).sum())
    note = None
    if missing:
        first = next(line["step"] for line in run.steps if not math.isfinite(line["loss"]))
        note = tag(
            "p", f"The loss of {whole(missing)} steps is not a number, first at step {whole(first)}.", class_="bad"
        )
    return section("Course", note, charts.switched(AXES, [_course_over(run, axis) for axis in AXES]))


def _course_over(run: RunRecord, axis: XAxis) -> Html:
    marks = run.boundaries(axis.key)

    def draw(figure: Figure, name: str, heldout: str = "", scale: float = 1.0, noisy: bool = True) -> Html:
        x, y = run.column(axis.key), scale * run.column(name)
        series = [Series("", x, y, "raw"), Series("mean", x, run.by_stage(smooth, y))] if noisy else [Series("", x, y)]
        if heldout:
            held = scale * column(run.evaluations, heldout)
            series.append(Series("held out", column(run.evaluations, axis.key), held, "heldout"))
        return chart(figure, axis, series, marks)

    loss = draw(Figure("Loss", "nats per masked token", _three, log=True, tall=True), "loss", "heldout_loss")
    accuracy = Figure("Accuracy", "% of masked tokens guessed right", _one, from_zero=True)
    share = Figure("Share of peak", "% of the measured matrix-product peak", _one, from_zero=True)
    padding = Figure("Padding", "% of token places", _one, from_zero=True)
    small = [
        draw(accuracy, "accuracy", "heldout_accuracy", 100.0),
        draw(Figure("Learning rate", "", _compact, from_zero=True), "lr", noisy=False),
        draw(Figure("Throughput", "tokens a second", short, from_zero=True), "tokens_per_second"),
        draw(share, "peak_fraction", scale=100.0),
        draw(Figure("Gradient norm", "before clipping", from_zero=True), "grad_norm"),
        draw(padding, "padding", scale=100.0) if (run.column("padding") > 0).any() else Html(""),
        *(draw(Figure(name, ""), name, noisy=False) for name in _further_numbers(run)),
    ]
    return join(loss, charts.columns(*small))


def _further_numbers(run: RunRecord) -> list[str]:
    """Numbers that a method logs beyond the common ones."""
    line = run.steps[-1]
    return [k for k, v in line.items() if k not in _COMMON and isinstance(v, (int, float))]


def predictions(run: RunRecord) -> Html:
    """Held-out sentences with two tokens hidden, and what the model makes of them."""
    if not run.samples:
        return section("Fill in the blank", nothing("No predictions: a run makes them when it ends."))
    blanks = [(truth, guesses) for sample in run.samples for truth, guesses in _answers(sample) if guesses]
    first = sum(truth == guesses[0]["token"] for truth, guesses in blanks)
    among = sum(any(truth == guess["token"] for guess in guesses) for truth, guesses in blanks)
    counts = f"Right at first guess: {first} of {len(blanks)}; among the guesses shown: {among}."
    legend = tag(
        "p",
        "Tokens hidden in held-out documents. The model's first guess stands in each blank: ",
        tag("ins", "right"),
        ", or ",
        _miss("wrong", "the hidden token"),
        f". Below, its guesses with their probability in %. {counts}",
    )
    return section("Fill in the blank", legend, *(_sample(s) for s in run.samples))


def _sample(sample: Mapping[str, Any]) -> Html:
    pieces = _MASK.split(sample["text"])
    answers = _answers(sample)
    text: list[Html | str] = [pieces[0]]
    for number, piece in enumerate(pieces[1:]):
        text += [_answer(*answers[number]) if number < len(answers) else tag("ins", "[MASK]"), piece]
    rows = [
        tag("li", tag("bdi", truth, class_="truth"), *(_guess(guess, truth) for guess in guesses))
        for truth, guesses in answers
    ]
    return tag("div", tag("p", *text, dir="auto"), tag("ul", *rows), class_="sample")


def _answers(sample: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return list(zip(sample["truth"], sample["predictions"], strict=False))


def _answer(truth: str, guesses: list[Mapping[str, Any]]) -> Html:
    guess = guesses[0]["token"] if guesses else "?"
    return tag("ins", guess) if guess == truth else _miss(guess, truth)


def _miss(guess: str, truth: str) -> Html:
    return tag("span", tag("del", guess), " ", tag("em", truth), class_="miss")


def _guess(guess: Mapping[str, Any], truth: str) -> Html:
    share = float(guess["probability"])
    kind = "guess hit" if guess["token"] == truth else "guess"
    shown = "<1" if share < 0.01 else f"{100 * share:.0f}"
    return tag("span", tag("bdi", guess["token"]), tag("small", shown), class_=kind, style=f"--p:{100 * share:.1f}%")


def evaluations(run: RunRecord) -> Html:
    """Every evaluation as a table row, folded away when there are many."""
    if not run.evaluations:
        return section("Evaluations", nothing("None yet: no held-out document has been looked at."))
    several = len(run.stages) > 1
    rows = [_evaluation(line, several) for line in run.evaluations]
    head = [*(["stage"] if several else []), "step", "held-out loss", "perplexity", "accuracy", "tokens", "time"]
    numbers = range(int(several), len(head))
    if len(rows) <= _FEW_ROWS:
        return section("Evaluations", table(head, rows, numbers))
    rest = tag("details", tag("summary", f"All {len(rows)} evaluations"), table(head, rows, numbers))
    return section("Evaluations", table(head, rows[-3:], numbers), rest)


def _evaluation(line: Mapping[str, Any], with_stage: bool) -> list[str]:
    return [
        *([line.get("stage", "")] if with_stage else []),
        whole(line["step"]),
        f"{line['heldout_loss']:.4f}",
        perplexity(line["heldout_loss"]),
        percent(line.get("heldout_accuracy", math.nan)),
        short(line.get("tokens", math.nan)),
        duration(line.get("seconds", math.nan)),
    ]


def stages(run: RunRecord) -> Html:
    """What each stage was told to do and what came of it, a column a stage."""
    columns = [_stage(run, stage) for stage in run.stages]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    head = ["", *(str(stage.get("name", "")) for stage in run.stages)]
    return section("Stages" if len(columns) > 1 else "Recipe", table(head, rows))


def _stage(run: RunRecord, stage: Mapping[str, Any]) -> dict[str, str]:
    lines = [line for line in run.steps if line.get("stage") == stage.get("name")]
    held = [line for line in run.evaluations if line.get("stage") == stage.get("name")]
    sampling, optimizer = stage.get("sampling", {}), stage.get("optimizer", {})
    schedules = stage.get("schedules", {}).items()
    spent = f"{whole(len(lines))} in {duration(float(column(lines, 'step_seconds').sum()))}"
    return {
        "model": _model_words(stage.get("model", {})),
        "objective": _settings(stage.get("objective", {})),
        "optimizer": _settings(optimizer),
        "schedules": "; ".join(f"{name}: {_settings(schedule)}" for name, schedule in schedules),
        "tokens a step": short(sampling.get("batch_tokens", math.nan)),
        "longest document": f"{sampling.get('max_len', '?')} tokens",
        "budget": _budget_words(stage.get("budget", {})),
        "steps": spent if lines else "none yet",
        "held-out loss": f"{held[-1]['heldout_loss']:.4f}" if held else "–",
    }


def cost(run: RunRecord) -> Html:
    """Time, FLOPs, share of peak, and money where the price of an hour is known."""
    seconds, in_steps = run.last.get("seconds", math.nan), run.total("step_seconds")
    processes = int(run.record.get("world_size", 1))
    pairs: list[tuple[str, Any]] = [
        ("time", join(duration(seconds), aside(f"{duration(in_steps)} in steps, the rest in evaluations"))),
        ("processes", str(processes)),
        ("computed", join(with_unit(run.total("flops"), "FLOP"), aside("matrix products, forward and backward"))),
    ]
    share = run.peak_share()
    if math.isfinite(share) and share > 0:
        peak = run.total("flops") / (in_steps * share * processes)
        pairs.append(
            ("share of peak", join(percent(share), aside(f"of {with_unit(peak, 'FLOP/s')} a process, measured")))
        )
    rate = short(trained_tokens(run) / in_steps)
    pairs.append(("throughput", join(rate, " tokens/s", aside("mean over all steps"))))
    price = price_per_hour(run)
    if price is None:
        how = "not known: put what an hour of this machine costs into run.json as price_per_hour; make the report again"
        pairs.append(("money", tag("span", how, class_="none")))
    else:
        amount = seconds / 3600 * price
        pairs.append(("money", join(money(amount), aside(f"at {money(price)} an hour"))))
    return section("Cost", facts(pairs))


def machine(run: RunRecord) -> Html:
    """Hardware, versions and commit."""
    made = run.record.get("provenance", {})
    hardware = made.get("hardware", {})
    memory = hardware.get("memory_bytes")
    cores = f"{hardware.get('cores', '?')} cores; threads of PyTorch: {hardware.get('torch_threads', '?')}"
    pairs: list[tuple[str, Any]] = [
        ("CPU", join(hardware.get("cpu", "?"), aside(cores), aside(" ".join(hardware.get("cpu_flags", []))))),
        ("GPU", ", ".join(hardware.get("gpus", [])) or "none"),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory else "?"),
        ("system", made.get("platform", "?")),
        ("Python", made.get("python", "?")),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())),
        ("commit", f"{made.get('commit') or 'none'}{', with changes' if made.get('dirty') else ''}"),
        ("last started", made.get("time", "?")),
        ("data fingerprint", run.record.get("data_fingerprint", "?")),
    ]
    return section("Machine and versions", facts(pairs))


def config(run: RunRecord) -> Html:
    """The resolved config, folded."""
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return section("Config", tag("details", tag("summary", "Every field, as it was resolved"), tag("pre", text)))


def price_per_hour(run: RunRecord) -> float | None:
    """Money an hour costs, from run.json or its config."""
    price = run.record.get("price_per_hour")
    return price if price is not None else run.config.get("price_per_hour")


def trained_tokens(run: RunRecord) -> float:
    """Tokens of all steps so far."""
    return float(run.steps[-1].get("tokens", math.nan)) if run.steps else math.nan


def perplexity(loss: float) -> str:
    """exp of a loss in nats; of masked tokens, not of running text."""
    return significant(math.exp(loss)) if loss < 50 else "–"


def aside(text: str) -> Html:
    """A remark beside a figure."""
    return tag("span", text, class_="aside")


def _settings(values: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items() if k != "kind" and v is not None)
    return f"{values.get('kind', '')} ({rest})" if rest else str(values.get("kind", ""))


def _model_words(model: Mapping[str, Any]) -> str:
    if model.get("kind") == "init":
        changed = ", ".join(f"{k} {v}" for k, v in model.get("fields", {}).items())
        return f"{model.get('family')} {model.get('size')}{f', {changed}' if changed else ''}"
    transform = f", {model['transform']}" if model.get("transform") else ""
    return f"{model.get('path') or 'of the stage before'}{transform}"


def _budget_words(budget: Mapping[str, Any]) -> str:
    if budget.get("steps"):
        return f"{whole(budget['steps'])} steps"
    return f"{short(budget['tokens'])} tokens" if budget.get("tokens") else duration(budget.get("seconds") or math.nan)


def _three(value: float) -> str:
    return f"{value:.3f}"


def _one(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _compact(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
