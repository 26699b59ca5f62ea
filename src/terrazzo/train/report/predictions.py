"""Fill-mask predictions, set as sentences with their blanks filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from terrazzo.train.report.markup import Html, nothing, section, tag
from terrazzo.train.report.record import RunRecord

_MASK = re.compile(r"\[MASK\]|<mask>")


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
