"""What the model does on the scoring rows: metrics with their interval, tables, the mistakes to read first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terrazzo.tasks.evaluate import headline
from terrazzo.tasks.report.record import FinetuneRecord
from terrazzo.train.report.markup import Child, Html, aside, facts, join, nothing, section, table, tag
from terrazzo.train.units import whole

_MOST_CLASSES, _MOST_PARTS, _MOST_PAIRS = 15, 40, 15


def quality(record: FinetuneRecord) -> Html:
    """The evaluation of the model on the scoring rows."""
    found = record.evaluation
    if not found:
        return section("The model on the scoring rows", nothing("Not evaluated yet."))
    return section(
        "The model on the scoring rows",
        facts(_figures(found)),
        _confusion(found.get("confusion")),
        _parts(found.get("groups", {})),
        _mistakes(found.get("worst", [])),
    )


def number(value: float | None) -> str:
    """A metric to four digits; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def _figures(found: Mapping[str, Any]) -> list[tuple[str, Child]]:
    interval = aside(
        f"95 % interval over {whole(found['rows'])} rows: {number(found['low'])} to {number(found['high'])}"
    )
    pairs: list[tuple[str, Child]] = [(found["main"], join(tag("b", number(found["value"])), interval))]
    pairs += [(name, number(value)) for name, value in headline(found["scores"], found["main"], found["groups"])]
    if found["calibration_error"] is not None:
        remark = aside("mean distance between confidence and accuracy")
        pairs.append(("calibration error", join(number(found["calibration_error"]), remark)))
    if found["truncated"]:
        pairs.append(("cut", f"{whole(found['truncated'])} rows are longer than the model reads"))
    if found["bad"]:
        first = found["bad"][0]
        text = f"{whole(len(found['bad']))} rows; the first: {first['where']}: {first['message']}"
        pairs.append(("bad rows", tag("span", text, class_="bad")))
    return pairs


def _confusion(found: Mapping[str, Any] | None) -> Html | None:
    """The whole table of few classes, the commonest mistakes of many."""
    if found is None:
        return None
    classes, counts = found["classes"], found["counts"]
    if len(classes) > _MOST_CLASSES:
        pairs = [
            (right, said, counts[i][j])
            for i, right in enumerate(classes)
            for j, said in enumerate(classes)
            if i != j and counts[i][j]
        ]
        commonest = sorted(pairs, key=lambda pair: -pair[2])[:_MOST_PAIRS]
        return table(["right", "taken for", "rows"], [[a, b, whole(n)] for a, b, n in commonest], {2})
    head = tag("tr", tag("th", "right \\ said"), *(tag("th", name, title=name) for name in classes))
    body = [
        tag("tr", tag("td", name), *(_cell(count, sum(row), i == j) for j, count in enumerate(row)))
        for i, (name, row) in enumerate(zip(classes, counts, strict=True))
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll confusion")


def _cell(count: int, total: int, right: bool) -> Html:
    if not count:
        return tag("td", "·")
    share = 45 * count / max(1, total)
    return tag("td", whole(count), class_="hit" if right else "slip", style=f"--p:{share:.1f}%")


def _parts(groups: Mapping[str, Mapping[str, float]]) -> Html | None:
    if not groups:
        return None
    names = list(dict.fromkeys(name for part in groups.values() for name in part))
    body = [[part, *(_part(name, values) for name in names)] for part, values in list(groups.items())[:_MOST_PARTS]]
    more = f"and {len(groups) - _MOST_PARTS} more" if len(groups) > _MOST_PARTS else None
    rest = tag("p", more, class_="note") if more else None
    return join(table(["part", *names], body, range(1, len(names) + 1)), rest)


def _part(name: str, values: Mapping[str, float]) -> str:
    return whole(values[name]) if name == "rows" else number(values.get(name))


def _mistakes(worst: Sequence[Mapping[str, Any]]) -> Html | None:
    if not worst:
        return None
    items = [_mistake(mistake) for mistake in worst]
    return join(
        tag("h3", "What it was surest of and got wrong"),
        tag("ul", *items, class_="mistakes"),
    )


def _mistake(mistake: Mapping[str, Any]) -> Html:
    place = " · ".join(str(part) for part in (mistake["problem"], mistake["where"].rpartition("/")[2]) if part)
    answers = tag("p", tag("del", mistake["said"]), " ", tag("ins", mistake["right"]), " ", tag("small", place))
    return tag("li", *(tag("p", text, dir="auto") for text in mistake["texts"]), answers)
